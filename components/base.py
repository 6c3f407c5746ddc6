"""What every component is built on."""

import functools

from kfp import dsl

# The default of the pipeline's `image` parameter. The name holds "python" because KFP's local runner warns otherwise.
IMAGE = "localhost/audioscore-python:dev"

# The image carries kfp and audioscore: nothing is installed while a step runs.
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
