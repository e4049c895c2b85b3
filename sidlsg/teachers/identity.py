"""What a model is: one hash for each thing that what it computes depends on.

A hash stays the same when a library gives weights other names or a configuration new settings, and in whatever form the same
folder is written. It changes with every weight, and with every setting, token and beta that changes the function.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sidlsg.method.schedule import NoiseSchedule

# What of the configurations of transformers' classes changes the function and is not in the shapes of the weights.
TEXT_SETTINGS = {
    "CLIPTextModel": ("hidden_act", "layer_norm_eps", "num_attention_heads"),
    "CLIPTextModelWithProjection": ("hidden_act", "layer_norm_eps", "num_attention_heads", "eos_token_id"),
}
# What of the configurations of diffusers' classes changes nothing here: dropout, a VAE in half precision, a VAE in tiles.
WITHOUT_EFFECT = {"UNet2DConditionModel": {"dropout"}, "AutoencoderKL": {"force_upcast", "sample_size"}}
# Of a tokenizer's serialised state: what the latest call has left there, and what turns tokens back into text.
CALLS = ("padding", "truncation", "decoder", "version")
PREFIX = "text_model."  # of a text encoder's weights, in files and in some releases of transformers
# What versions that recorded only hashes of the parts did not record.
BESIDE_PARTS = ("scheduler", "model_index")


def part_digest(part: Any) -> str:
    """SHA-256 of a network by its settings and weights, or of a tokenizer by how it turns text into ids."""
    if not isinstance(part, nn.Module):
        return _hash(_tokenizer_state(part))
    digest = hashlib.sha256(_canonical(settings_of(part)))
    _add_tensors(digest, canonical_weights(part.state_dict()))
    return digest.hexdigest()


def canonical_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights under names that do not depend on the library's release."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}


def schedule_digest(schedule: NoiseSchedule) -> str:
    """SHA-256 of a forward process: its betas, in float32 so that a machine's rounding does not count, and the prediction."""
    digest = hashlib.sha256(_canonical(schedule.prediction_type))
    _add_tensors(digest, {"betas": schedule.betas.float()})
    return digest.hexdigest()


def values_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values."""
    return _hash(values)


def recognised(recorded: Mapping[str, str], today: Mapping[str, str], parts: Mapping[str, Any]) -> dict[str, str]:
    """Hashes on record, with today's in place of those that an older version gave to the same parts.

    Args:
        today: the hashes of ``parts`` and of what is beside them.

    Older versions hashed the weights under the names that the installed library gave them, and of a tokenizer the vocabulary.
    They did not record what is beside the parts, which is taken as it is.
    """
    found = dict(recorded)
    for name, part in parts.items():
        if name in recorded and recorded[name] != today[name] and recorded[name] in old_digests(part):
            found[name] = today[name]
    if not recorded.keys() & set(BESIDE_PARTS):
        found |= {name: today[name] for name in BESIDE_PARTS}
    return found


def old_digests(part: Any) -> Iterator[str]:
    """The hashes that older versions may have given a part, by the names of its weights in any release of the library."""
    if not isinstance(part, nn.Module):
        yield hashlib.sha256(json.dumps([sorted(part.get_vocab().items()), part.model_max_length]).encode()).hexdigest()
        return
    plain = canonical_weights(part.state_dict())
    prefixed = {name if name.startswith("text_") else PREFIX + name: tensor for name, tensor in plain.items()}
    for weights in (plain, prefixed):
        digest = hashlib.sha256()
        _add_tensors(digest, weights)
        yield digest.hexdigest()


def settings_of(network: Any) -> dict[str, Any]:
    """The settings of a network that change what it computes: transformers' by name, diffusers' where they are not the default.

    A later release of diffusers may add settings, whose default is what the network has done before.
    """
    kind, config = type(network), network.config
    if not isinstance(config, Mapping):
        return {name: getattr(config, name) for name in TEXT_SETTINGS[kind.__name__]}
    ignored = WITHOUT_EFFECT.get(kind.__name__, set())
    defaults = {name: taken.default for name, taken in inspect.signature(kind.__init__).parameters.items()}
    return {
        name: value
        for name, value in config.items()
        if name in defaults and name not in ignored and _plain(value) != _plain(defaults[name])
    }


def _tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """All that the ids of a prompt depend on, as plain values."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = state["model"].get("merges", [])
    state["model"]["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    names = ("padding_side", "truncation_side", "pad_token_id", "model_max_length", "split_special_tokens")
    return {
        "serialised": _without_empty({name: value for name, value in state.items() if name not in CALLS}),
        **{name: getattr(tokenizer, name, None) for name in names},
    }


def _add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add names, dtypes, shapes and bytes, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _hash(values: Any) -> str:
    return hashlib.sha256(_canonical(values)).hexdigest()


def _canonical(values: Any) -> bytes:
    return json.dumps(_plain(values), sort_keys=True).encode()


def _plain(value: Any) -> Any:
    """A JSON value in the one form of its meaning: lists for tuples, 1 for 1.0."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_empty(value: Any) -> Any:
    """A tokenizer's state without what is off or empty, as whatever a later release adds is in what was there before."""
    if isinstance(value, Mapping):
        kept = {key: _without_empty(inner) for key, inner in value.items()}
        return {key: inner for key, inner in kept.items() if inner not in (None, "", [], {}) and inner is not False}
    return [_without_empty(inner) for inner in value] if isinstance(value, list) else value
