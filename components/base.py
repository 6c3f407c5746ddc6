"""What every component is built on."""

import functools

from kfp import dsl

from audioscore.platforms import IMAGE

# The image carries kfp and audioscore: nothing is installed while a step runs.
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
