"""From YAML files and command-line words to one checked configuration."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime
from inspect import signature
from typing import Any, Optional, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ministudio.utils.errors import UserError, did_you_mean

# These fields hold words of a person: on the command line `prompt=a cat: sitting` is text, not a YAML mapping.
_TEXT_FIELDS = {"name", "description", "tag", "prompt", "negative_prompt"}
_TEXT_FIELDS |= {f"prompt_{view}" for view in ("front", "side", "back", "overhead")}


class ConfigError(UserError):
    """A bad key; `key` is its dotted path as far as it is known."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key, self.problem = key, problem


@contextmanager
def within(prefix: str) -> Iterator[None]:
    """Complete the path of a ConfigError raised inside: `with within("system.geometry"): ...`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prefix}.{error.key}", error.problem) from None


def whole(key: str, value: Any, at_least: float = 1) -> int:
    """The value of a key that counts something.

    Raises:
        ConfigError: not a whole number, or a smaller one than `at_least`.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or value != value // 1 or value < at_least:
        least = f", at least {at_least}" if math.isfinite(at_least) else ""
        raise ConfigError(key, f"must be a whole number{least}, not {value}")
    return int(value)


def check_keys(block: Iterable[Any], known: Iterable[str]) -> None:
    """`ConfigError` for a key of a block that is not one of those that are read."""
    known = list(known)
    for key in block:
        if key not in known:
            raise ConfigError(str(key), f"unknown key{did_you_mean(str(key), known)}")


def _positive(value: Any) -> bool:
    """True if a number, or any value of a schedule's list, is above zero."""
    if not isinstance(value, (list, tuple, ListConfig)):
        return value > 0
    start = 0 if len(value) == 3 else 1
    values = value[:2] if start == 0 else [value[1], *list(value)[2::2]]
    return max(values) > 0


_RESOLVERS = {
    "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1.0 / n),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "basename": lambda path: os.path.basename(path),
    "rmspace": lambda text, substitute: str(text).replace(" ", substitute),
    "tuple2": lambda value: [float(value), float(value)],
    "gt0": lambda value: value > 0,
    "cmaxgt0": _positive,
    "not": lambda value: not value,
    "cmaxgt0orcmaxgt0": lambda a, b: _positive(a) or _positive(b),
}

# omegaconf 2.4 renamed register_new_resolver; in 2.3 the new name is an older function
_is_renamed = "replace" in signature(OmegaConf.register_resolver).parameters
_register_resolver = OmegaConf.register_resolver if _is_renamed else OmegaConf.register_new_resolver
for _name, _function in _RESOLVERS.items():
    _register_resolver(_name, _function, replace=True)


@dataclass
class ExperimentConfig:
    """The top level of a YAML file. exp_dir, trial_name, trial_dir and n_gpus are computed."""

    name: str = "default"
    description: str = ""
    tag: str = ""
    seed: int = 0
    use_timestamp: bool = True
    timestamp: Optional[str] = None  # "@YYYYMMDD-HHMMSS"; a stored one is used again
    exp_root_dir: str = "outputs"
    exp_dir: str = "outputs/default"
    trial_name: str = "exp"
    trial_dir: str = "outputs/default/exp"
    n_gpus: int = 1
    resume: Optional[str] = None  # path of a checkpoint

    data_type: str = ""
    data: dict = field(default_factory=dict)
    system_type: str = ""
    system: dict = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)  # arguments of Lightning's Trainer
    checkpoint: dict = field(default_factory=dict)  # arguments of Lightning's ModelCheckpoint

    def __post_init__(self) -> None:
        if not self.tag and not self.use_timestamp:
            raise UserError("without tag and with use_timestamp=false the trial has no name: set tag=NAME")
        if not self.use_timestamp or self.n_gpus > 1:
            self.timestamp = ""  # several processes could disagree on the second
        elif not self.timestamp:
            self.timestamp = datetime.now().strftime("@%Y%m%d-%H%M%S")
        self.exp_dir = os.path.join(self.exp_root_dir, self.name)
        self.trial_name = _as_file_name(self.tag) + self.timestamp
        self.trial_dir = os.path.join(self.exp_dir, self.trial_name)


def _as_file_name(tag: str, limit: int = 150) -> str:
    """A prompt as one path component that every file system takes."""
    return tag.replace("/", "_").replace("\0", "_").encode()[:limit].decode(errors="ignore")


def merge_config(*yamls: str, cli_args: Sequence[str] = (), from_string: bool = False) -> DictConfig:
    """YAML files (or texts), then `a.b=value` words, with their interpolations.

    Raises:
        UserError: unreadable file, bad YAML or word.
    """
    parts = [_parse_yaml(text) if from_string else _read_yaml(text) for text in yamls]
    parts += [_parse_word(word) for word in cli_args]
    try:
        return OmegaConf.merge(*parts)
    except OmegaConfBaseException as error:
        raise _from_omegaconf(error) from None


def load_config(
    *yamls: str, cli_args: Sequence[str] = (), from_string: bool = False, **kwargs: Any
) -> ExperimentConfig:
    """merge_config, then resolve_config with kwargs."""
    return resolve_config(merge_config(*yamls, cli_args=cli_args, from_string=from_string), **kwargs)


def resolve_config(given: DictConfig, **kwargs: Any) -> ExperimentConfig:
    """A merged configuration with kwargs on top, its interpolations resolved, checked; `given` stays as it is.

    Raises:
        UserError: missing value, unknown top-level key, bad interpolation.
    """
    try:
        cfg = OmegaConf.merge(given, kwargs)
        missing = list(_missing(OmegaConf.to_container(cfg)))
        if missing:
            raise UserError(f"{missing[0]} is missing: add {missing[0]}={_example(missing[0])}")
        steps = OmegaConf.select(cfg, "trainer.max_steps")
        if steps is not None:  # name it itself, not a value that is computed from it
            whole("trainer.max_steps", steps, at_least=-math.inf)
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise _from_omegaconf(error) from None
    return parse_structured(ExperimentConfig, cfg)


def _missing(node: Any, path: str = "") -> Iterator[str]:
    """Paths of the values ???; unlike omegaconf's own search it follows no interpolation."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield from [f"{path}{key}"] if value == "???" else _missing(value, f"{path}{key}.")


def _read_yaml(path: str) -> DictConfig:
    try:
        with open(path, encoding="utf-8") as file:
            return _parse_yaml(file.read(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration {path}: {getattr(error, 'strerror', None) or error}") from None


def _parse_yaml(text: str, where: str = "configuration") -> DictConfig:
    try:
        cfg = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{where} is not a mapping of keys to values")
    return cfg


def _parse_word(word: str) -> DictConfig:
    """One `a.b.c=value` of the command line; the value is YAML, except for fields that hold words."""
    key, equals, value = word.partition("=")
    if not equals or not key or key.startswith("-"):
        raise UserError(f'cannot understand "{word}": write key=value (launch.py --help lists the options)')
    text = key.rsplit(".", 1)[-1] in _TEXT_FIELDS and value not in ("null", "???")
    try:
        return OmegaConf.from_dotlist([f"{key}={_quoted(value)}" if text else word])
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeError) as error:
        raise UserError(f"{key}: cannot read the value {value!r}: {' '.join(str(error).split())[:200]}") from None


def _quoted(text: str) -> str:
    """YAML for exactly this text; a value that the user quoted for YAML keeps the user's quotes."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and _is_yaml_text(text):
        return text
    return "'" + text.replace("'", "''") + "'"


def _is_yaml_text(text: str) -> bool:
    """Whether it is one text of YAML as a whole, as `"red" and "blue"` is not."""
    try:
        return isinstance(yaml.safe_load(text), str)
    except yaml.YAMLError:
        return False


def _example(key: str) -> str:
    return '"a red cube"' if key.endswith("prompt") else "VALUE"


def _from_omegaconf(error: OmegaConfBaseException) -> ConfigError:
    problem = (str(error).strip().splitlines() or ["bad value"])[0]
    return ConfigError(getattr(error, "full_key", None) or getattr(error, "key", None) or "configuration", problem)


def parse_structured(Config: type, cfg: Any = None) -> Any:
    """Check cfg against a dataclass and fill in its defaults.

    Returns a DictConfig typed by `Config`; it converts (1 -> 1.0) and refuses (1.5 -> int).

    Raises:
        ConfigError: unknown key, or a value of the wrong type.
    """
    if not isinstance(cfg, (dict, DictConfig)):
        raise UserError(f"{Config.__qualname__} needs a mapping of keys to values, not {cfg!r}")
    check_keys(cfg, (f.name for f in fields(Config)))
    hints = get_type_hints(Config)
    for key, value in cfg.items():
        if isinstance(value, (list, tuple, dict, ListConfig, DictConfig)):
            _check_container(str(key), hints[str(key)], value)
    try:
        return OmegaConf.structured(Config(**cfg))
    except OmegaConfBaseException as error:
        raise _from_omegaconf(error) from None


def _check_container(key: str, hint: Any, value: Any) -> None:
    """omegaconf takes a list or a mapping as it is, whatever the type of the field. A list for a float is a schedule."""
    numbers = isinstance(value, (list, tuple, ListConfig)) and all(isinstance(v, (int, float)) for v in value)
    if get_origin(hint) is tuple:
        n = len(get_args(hint))
        if not numbers or len(value) != n:
            raise ConfigError(key, f"must be {n} numbers in brackets, not {value}")
        return
    kinds = set(get_args(hint) if get_origin(hint) is Union else [hint]) - {type(None)}
    if kinds <= {int, bool, str, float} and not (float in kinds and numbers):
        raise ConfigError(key, f"must be a single value, not {value}")
    if dict in kinds and not isinstance(value, (dict, DictConfig)):
        raise ConfigError(key, f"must be a block of keys and values, not {value}")


def config_to_primitive(config: Any, resolve: bool = True) -> Any:
    """Plain dicts, lists and values of a configuration."""
    return OmegaConf.to_container(config, resolve=resolve)


def dump_config(path: str, config: Any) -> None:
    """Write a configuration as YAML; interpolations that are not resolved yet stay."""
    with open(path, "w", encoding="utf-8") as file:
        OmegaConf.save(config=config, f=file)
