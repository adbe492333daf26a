"""Every recorded array of the released network, made again here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hmsa_core.models.layers.blocks import resize, scaled_size
from hmsa_core.models.model import MultiScaleModel, Prediction, ScaleOutput, as_kind
from tests.reference import golden

pytestmark = pytest.mark.long

RECORD = golden.record("model_forward")
NAMES = [name for name in golden.array_names("model_forward") if name not in ("gts", "eval_argmax", "avgpool_argmax")]
IMAGES = {False: (1234, (1, 3, 128, 256)), True: (1235, (1, 3, 101, 187))}
LOGITS = re.compile(r"pred|logits|cls_|aux_|probs|prob_mask|attn")


class Recomputed:
    """The released network's outputs by the reference's names; each image and scale is run once."""

    def __init__(self, model: MultiScaleModel) -> None:
        self.model = model
        self._runs: dict[object, ScaleOutput] = {}
        self._inner: dict[str, Tensor] = {}
        forward = MultiScaleModel.forward_scale

        def remembered(images: Tensor, *, attention: bool = True) -> ScaleOutput:
            key = (tuple(images.shape), float(images[0, 0, 0, 0]), float(images[0, 0, 0, -1]))
            if key not in self._runs:
                self._runs[key] = forward(model, images, attention=True)
            return self._runs[key]

        for kind in ("hierarchical", "single", "average"):
            other = as_kind(model, kind)
            other.forward_scale = remembered  # type: ignore[method-assign]
            setattr(self, kind, other)

    hierarchical: MultiScaleModel
    single: MultiScaleModel
    average: MultiScaleModel

    def image(self, odd: bool = False) -> Tensor:
        return golden.image(*IMAGES[odd])

    def at_scale(self, scale: float, odd: bool = False) -> tuple[ScaleOutput, tuple[int, int]]:
        images = self.image(odd)
        size = scaled_size((images.shape[2], images.shape[3]), scale)
        with torch.no_grad():
            return self.hierarchical.forward_scale(resize(images, size)), size

    def inner(self, name: str) -> Tensor:
        if not self._inner:
            self._inner = dict(_inner_outputs(self.model, self.image()))
        return self._inner[name]

    def array(self, name: str) -> Tensor:
        odd = name.startswith("odd_")
        name = name.removeprefix("odd_")
        for pattern, compute in _RULES:
            if match := re.fullmatch(pattern, name):
                return compute(self, odd, *match.groups())
        raise AssertionError(f"no rule for {name}")


def _inner_outputs(model: MultiScaleModel, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    backbone, ocr = model.backbone, model.ocr
    watched: dict[str, nn.Module] = {
        "trunk_layer1": backbone.layer1,
        "trunk_feats": model.neck,
        "ocr_conv3x3_ocr": ocr.conv3x3_ocr,
        "ocr_object_context_block": ocr.ocr_distri_head.object_context_block,
        "ocr_feats": ocr.ocr_distri_head,
        **{f"trunk_stage{i}": getattr(backbone, f"stage{i}") for i in (2, 3, 4)},
    }
    seen: dict[str, object] = {}
    hooks = [module.register_forward_hook(_keep(seen, name)) for name, module in watched.items()]
    hooks.append(
        ocr.ocr_distri_head.register_forward_pre_hook(lambda _m, args: seen.update(ocr_ocr_gather_head=args[1]))
    )
    with torch.no_grad():
        model.forward_scale(images)
    for hook in hooks:
        hook.remove()
    for name, value in seen.items():
        if isinstance(value, list):
            yield from ((f"{name}_branch{i}", branch) for i, branch in enumerate(value))
        else:
            assert isinstance(value, Tensor)
            yield name, value


def _keep(seen: dict[str, object], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        # in-place layers may write into it later
        seen[name] = [t.clone() for t in output] if isinstance(output, list) else output.clone()  # type: ignore[attr-defined]

    return hook


def _predict(run: Recomputed, odd: bool, scales: str, flip: bool = False) -> Prediction:
    return run.hierarchical.predict(run.image(odd), [float(s) for s in scales.split("_")], flip=flip)


def _head(run: Recomputed, odd: bool, head: str, grid: str) -> Tensor:
    output, size = run.at_scale(1.0, odd)
    field = {"cls": output.logits, "aux": output.aux_logits, "attn": output.attention}[head]
    assert field is not None
    return field if grid == "quarter" else resize(field, size)


def _own(run: Recomputed, odd: bool, what: str, scale: str) -> Tensor:
    output, size = run.at_scale(float(scale), odd)
    field = output.logits if what == "pred" else output.attention
    assert field is not None
    return resize(field, size)


def _two_scale(run: Recomputed, odd: bool, what: str) -> Tensor:
    with torch.no_grad():
        output = run.hierarchical(run.image(odd))
    by_name = {
        "pred": output.logits,
        "pred_05x": output.scale_logits[0.5],
        "pred_10x": output.scale_logits[1.0],
        "attn_05x": output.attention[0.5],
    }
    return by_name[what]


def _top_probability(run: Recomputed, odd: bool, which: str) -> Tensor:
    model = {"eval": run.hierarchical, "avgpool": run.average}[which]
    return model.predict(run.image(odd), (0.5, 1.0, 2.0), flip=True).probabilities.amax(dim=1, keepdim=True)


_RULES: list[tuple[str, Callable[..., Tensor]]] = [
    (r"resize_input_(.*)", lambda run, odd, s: resize(run.image(odd), scaled_size((128, 256), float(s)))),
    (r"((?:trunk|ocr)_.*)", lambda run, _odd, name: run.inner(name)),
    (r"(cls|aux|attn)_(quarter|full)", _head),
    (r"plain_pred", lambda run, odd: run.single.predict(run.image(odd), (1.0,)).logits),
    (r"two_scale_(.*)", _two_scale),
    (r"n([\d._]+)_pred", lambda run, odd, s: _predict(run, odd, s).logits),
    (r"n[\d._]+_(pred|attn)_([\d.]+)x", _own),
    (r"n([\d._]+)_flip_logits", lambda run, odd, s: _predict(run, odd, s, flip=True).logits),
    (r"n([\d._]+)_flip_probs", lambda run, odd, s: _predict(run, odd, s, flip=True).probabilities),
    (r"(eval|avgpool)_prob_mask", _top_probability),
]


@pytest.fixture(scope="module")
def recomputed(w48: MultiScaleModel) -> Recomputed:
    return Recomputed(w48)


def _is_exact_scale(name: str) -> bool:
    """Whether only powers of two and an even image are involved: resampling coordinates are exact then."""
    return not name.startswith("odd_") and "0.75" not in name and "1.25" not in name


# The long scale lists take half of the time: they run in `make test`.
LONG = re.compile("n0.25_|n0.5_0.75")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.chain if LONG.search(n) else ()) for n in NAMES])
def test_every_recorded_array_of_the_released_network_comes_out_again(recomputed: Recomputed, name: str) -> None:
    ours = recomputed.array(name).numpy()
    recorded = RECORD[name]
    relative, absolute = (1e-5, 2e-4) if _is_exact_scale(name) else (1e-4, 2e-3)

    def check(mine: np.ndarray, theirs: np.ndarray) -> None:
        assert mine.shape == theirs.shape
        assert golden.relative_l2(mine, theirs) <= relative
        if LOGITS.search(name):
            assert np.abs(mine - theirs).max() <= absolute

    golden.compare("model_forward", name, recorded["stored_slice"], ours, check)
    # The full array, by its sums
    assert list(ours.shape) == recorded["shape"]
    assert np.linalg.norm(ours.astype(np.float64)) == pytest.approx(recorded["l2"], rel=relative)
    assert np.abs(ours).astype(np.float64).sum() == pytest.approx(recorded["abs_sum"], rel=relative)
    assert ours.reshape(-1)[:8] == pytest.approx(recorded["first8"], abs=absolute, rel=relative)


@pytest.mark.parametrize(("which", "entry"), [("eval", "eval_minibatch"), ("avgpool", "eval_minibatch_avgpool_plain")])
def test_the_evaluation_loop_gives_the_recorded_labels_exactly(recomputed: Recomputed, which: str, entry: str) -> None:
    model = recomputed.hierarchical if which == "eval" else recomputed.average
    prediction = model.predict(recomputed.image(), (0.5, 1.0, 2.0), flip=True)
    labels = prediction.logits.argmax(dim=1).numpy()

    golden.compare("model_forward", f"{which}_argmax", "[:]", labels, _same_integers)
    truth = golden.blocky_labels(4321, 1, 128, 256, 19)
    golden.compare("model_forward", "gts", "[:]", truth, _same_integers)
    hits = np.bincount(truth[truth == labels], minlength=19)
    assert hits.tolist() == RECORD[entry]["hist_diag"]


def _same_integers(mine: np.ndarray, theirs: np.ndarray) -> None:
    assert np.array_equal(mine, theirs)


def test_the_inputs_and_weights_made_here_are_the_recorded_ones(w48: MultiScaleModel) -> None:
    for name, odd in (("input_image", False), ("odd_image", True)):
        values = golden.image(*IMAGES[odd]).double()
        assert float(values.sum()) == pytest.approx(RECORD[name]["sum"], rel=1e-9)
        assert values.flatten()[:8].tolist() == pytest.approx(RECORD[name]["first8"])
    check = golden.record("model_fill_check")
    state = w48.state_dict()
    for key, entry in check["entries"].items():
        if key.startswith("_"):
            continue
        assert state[key].flatten()[:4].tolist() == pytest.approx(entry["first4"], rel=1e-6)
        assert float(state[key].double().sum()) == pytest.approx(entry["sum"], abs=1e-4, rel=1e-6)
    everything = sum(float(t.double().abs().sum()) for t in state.values())
    assert everything == pytest.approx(check["entries"]["_abs_sum_of_everything"], rel=1e-6)


def test_the_order_of_weighting_and_upsampling_is_the_released_one(recomputed: Recomputed) -> None:
    """Upsampling first moves the result by 9e-4 (model_sensitivity.json): the tolerance above must see that."""
    image = recomputed.image()
    low, size_low = recomputed.at_scale(0.5)
    top, size = recomputed.at_scale(1.0)
    assert low.attention is not None
    weight = resize(resize(low.attention, size_low), size)
    wrong_order = weight * resize(resize(low.logits, size_low), size) + (1 - weight) * resize(top.logits, size)
    ours = recomputed.hierarchical.predict(image, (0.5, 1.0)).logits
    assert 1e-4 < golden.relative_l2(wrong_order.numpy(), ours.numpy()) < 1e-2


def test_bfloat16_gives_nearly_the_same_labels(recomputed: Recomputed, record_property: Callable[..., None]) -> None:
    exact = recomputed.hierarchical.predict(recomputed.image(), (0.5, 1.0)).logits.argmax(dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = recomputed.model.predict(recomputed.image(), (0.5, 1.0))
    agreement = float((rough.logits.argmax(dim=1) == exact).float().mean())
    record_property("bf16_argmax_agreement", agreement)
    assert rough.logits.dtype == torch.float32
    assert agreement > 0.97
