"""An auto-annotation function of CVAT: a checkpoint labels the images of a task, by CVAT's own command.

    cvat-cli task auto-annotate 17 --conf-threshold 0.9
        --function-module hmsa_core.inference.folder.cvat_function -p checkpoint=str:models/teacher

Masks are those of `autolabel export --format cvat`: one for each connected piece of a class. Pixels below the
threshold get no mask. The labels of the task must have the names of the checkpoint's classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from hmsa_core.config import RuntimeConfig
from hmsa_core.inference.network.predictor import open_tiler
from hmsa_core.inference.teachers.run_options import run_options
from hmsa_core.io.errors import ConfigError, needs_extra
from hmsa_core.labels.formats.cvat import pieces
from hmsa_core.taxonomy import IGNORE

with needs_extra("exchange"):
    import cvat_sdk.auto_annotation as cvat
    from cvat_sdk.masks import encode_mask


class HierarchicalLabels:
    """What `cvat_sdk.auto_annotation` calls; `create(checkpoint)` of CVAT's convention makes it.

    Args:
        checkpoint: a checkpoint folder; its own scales and flip are used.
        device: "auto", "cpu" or "cuda".
    """

    def __init__(self, checkpoint: str, device: str = "auto") -> None:
        options = run_options(checkpoint)
        self.classes, self._passes = options.classes, options.passes
        runtime = RuntimeConfig.model_validate({"device": device, "precision": "fp32", "threads": "auto"})
        self._tiler = open_tiler(options.checkpoint, runtime)

    @property
    def spec(self) -> Any:
        """The labels, by the ids that `detect` uses."""
        return cvat.DetectionFunctionSpec(
            labels=[cvat.label_spec(name, i, type="mask") for i, name in enumerate(self.classes.classes)]
        )

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Masks of one image."""
        if context.conv_mask_to_poly:
            raise ConfigError(
                "masks are not turned into polygons, which would lose pixels", hint="leave that option out"
            )
        label, confidence = self._tiler.label(np.asarray(image.convert("RGB")), self._passes)
        kept = np.where(confidence >= np.float32(context.conf_threshold or 0), label, np.uint8(IGNORE))
        return [
            cvat.mask(class_id, _moved(encode_mask(mask), x, y))
            for class_id, x, y, mask in pieces(kept, self.classes.num_classes)
        ]


def _moved(points: list[float], x: int, y: int) -> list[float]:
    """Runs and box of a mask that was cut out at (x, y)."""
    left, top, right, bottom = points[-4:]
    return [*points[:-4], left + x, top + y, right + x, bottom + y]


create = HierarchicalLabels
