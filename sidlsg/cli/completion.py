"""The values that a shell offers for an option (`sidlsg --install-completion`). Lists are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Completer = Callable[[str], list[str]]


def offer(names: Callable[[], Iterable[str]]) -> Completer:
    """Those of the names that begin as what is typed; where none does, the shell offers files."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def _presets() -> Iterable[str]:
    from sidlsg.settings import preset_names

    return preset_names()


def _models() -> Iterable[str]:
    from sidlsg.teachers.registry import registry

    return registry()


def _teachers() -> Iterable[str]:
    from sidlsg.files import STUDENT_FILE
    from sidlsg.teachers.registry import registry

    return (
        name for name, entry in registry().items() if not (entry.folder and (entry.folder / STUDENT_FILE).is_file())
    )


def _strategies() -> Iterable[str]:
    from sidlsg.method.guidance import STRATEGIES

    return STRATEGIES


def _protocols() -> Iterable[str]:
    from sidlsg.evaluation.protocol import protocols

    return protocols()


def _gpus() -> Iterable[str]:
    from sidlsg.planning.gpus import gpus

    return gpus()


def _samplers() -> Iterable[str]:
    from sidlsg.sampling.samplers import SAMPLERS

    return SAMPLERS


def _architectures() -> Iterable[str]:
    from sidlsg.planning.footprint import footprints

    return footprints()


def _settings() -> Iterable[str]:
    from sidlsg.config import FIELDS

    return (f"{name}=" for name in FIELDS)


presets, models, teachers, strategies = offer(_presets), offer(_models), offer(_teachers), offer(_strategies)
protocols, gpus, samplers, settings = offer(_protocols), offer(_gpus), offer(_samplers), offer(_settings)
architectures = offer(_architectures)
precisions = offer(lambda: ("fp32", "bf16", "fp16"))
devices = offer(lambda: ("auto", "cpu", "cuda", "cuda:0"))
