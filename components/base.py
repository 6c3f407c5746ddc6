"""The decorator of every component."""

import functools

from kfp import dsl

from audioscore.platforms import IMAGE

# The image contains kfp and audioscore, so that a step installs nothing.
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
