"""Named evaluation protocols (``protocols.yaml``): what is done to pictures and captions before they are compared."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass

from sidlsg.data import read_table
from sidlsg.errors import UsageError, nearest

HPS_STYLES = ("anime", "photo", "concept-art", "paintings")
HPS_VERSIONS = ("v2.0", "v2.1")
HPS_PROMPTS = 800  # per style
HPS_JPEG_QUALITY = 75  # as the authors' script stores the pictures it scores
RUN = "run"  # ``Protocol.prompts`` of one that draws prompts of a run's own list
NOT_COMPUTED = ("what", "reference", "images", "reference_names")  # fields of ``Protocol`` that no score depends on
PRECISION = "float32, without TF32 or autocast"  # of every network that judges pictures; set by networks.full_precision


@dataclass(frozen=True)
class Protocol:
    """One row of ``protocols.yaml``.

    ``distance`` is the name under which the Fréchet distance is reported: FID only where the features are Inception's.
    """

    name: str
    what: str
    distance: str
    prompts: str  # caption list: coco30k, emoji-bench, or run: prompts of the run's own list
    images: int  # generated for a full evaluation
    reference: str
    reference_images: int
    size: int  # side of the square pictures that are compared
    crop: (
        str | None
    )  # how a half-pixel offset of the centre crop is rounded: round (half to even), floor; None: no crop, no resize
    features: str  # inception or judge
    features_resize: str | None  # to Inception's 299: bicubic (antialiased, float) or bilinear (TensorFlow 1's)
    ddof: int  # of the covariances
    neighbours: int  # k of precision and recall
    clip_model: str  # open_clip architecture, or judge
    clip_weights: str  # key of weights.yaml, or judge
    clip_prefix: str  # prepended to every caption
    clip_resize: str | None  # pil (open_clip's preprocessing), tensor (bicubic without antialiasing), None (as it is)
    clip_truncates: bool  # lower the levels 1 to 63 by one first, as GigaGAN's script does
    retrieval: bool = False  # also report caption retrieval
    reference_names: tuple[str, ...] = ()  # what the reference's files are named, see ``name_shape``; empty: anything

    @property
    def fingerprint(self) -> str:
        """A hash of all fields that can change a score."""
        facts = {k: v for k, v in asdict(self).items() if k not in NOT_COMPUTED}
        facts["precision"] = PRECISION
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def protocols() -> dict[str, Protocol]:
    rows = read_table("evaluation/protocols.yaml")
    for row in rows.values():
        row["reference_names"] = tuple(row.get("reference_names", ()))
    return {name: Protocol(name, **row) for name, row in rows.items()}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name; raises UsageError, suggesting the closest name, when there is none."""
    if name not in protocols():
        raise UsageError(f'unknown protocol "{name}"{nearest(name, protocols())}')
    return protocols()[name]
