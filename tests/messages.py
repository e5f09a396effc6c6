"""The text of an error, for tests of what it says."""

from collections.abc import Callable
from typing import Any

import pytest

from funcnn.layer import LayerError


def message_of(call: Callable[[], Any]) -> str:
    """The message of the LayerError that `call` raises."""
    with pytest.raises(LayerError) as caught:
        call()
    return str(caught.value)
