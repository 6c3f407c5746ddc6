import warnings

import pytest

from audioscore.encoders.compute import quiet_imports


def test_warnings_are_silent_inside_and_errors_again_after() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_imports():
            warnings.warn("a dependency's own notice", DeprecationWarning, stacklevel=1)
        with pytest.raises(DeprecationWarning, match="ours"):
            warnings.warn("ours", DeprecationWarning, stacklevel=1)


def test_an_import_error_is_not_swallowed() -> None:
    with pytest.raises(ModuleNotFoundError), quiet_imports():
        raise ModuleNotFoundError("muq")
