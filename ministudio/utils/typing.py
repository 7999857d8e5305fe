"""One import for the type names that modules use, as threestudio offers them."""

from collections.abc import Iterable, Iterator, Sequence  # noqa: F401
from typing import (  # noqa: F401
    Any,
    Callable,
    Dict,
    List,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Sized,
    Tuple,
    Type,
    TypeVar,
    Union,
)

from jaxtyping import Bool, Complex, Float, Inexact, Int, Integer, Num, Shaped, UInt  # noqa: F401
from omegaconf import DictConfig  # noqa: F401
from torch import Tensor  # noqa: F401
