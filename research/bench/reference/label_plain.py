"""The loop that people write who have a network of another tool: what `bench_foreign.py` compares with.

    python -m research.bench.reference.label_plain onnx:FILE|hf:FOLDER THREADS OUT IMAGE...

For each image, one step after the other: cv2.imread, the network's size, normalising (of transformers: the folder's own
processor), the network, softmax, probabilities enlarged to the image, best class and its probability as two PNGs.
Nothing else: no check of files or scores, no digests, no counts, no resuming, no class map, scale 1 alone.

It prints a line once the network is loaded, waits for one, and at the end prints the seconds of its loop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
Run = Callable[[np.ndarray], np.ndarray]  # uint8 H x W x 3 RGB -> scores C x h x w


def open_onnx(path: str, threads: int) -> Run:
    """An ONNX file of one input size."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    height, width = given.shape[2:]

    def run(image: np.ndarray) -> np.ndarray:
        pixels = (cv2.resize(image, (width, height)).astype(np.float32) / 255 - MEAN) / STD
        return session.run(None, {given.name: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])})[0][0]

    return run


def open_hf(folder: str, threads: int) -> Run:
    """A folder of transformers."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    torch.set_num_threads(threads)
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, local_files_only=True).eval()

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(**processor(images=image, return_tensors="pt")).logits[0].numpy()

    return run


def label(run: Run, path: Path, out: Path) -> None:
    """Label one image."""
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    scores = run(image)
    shares = np.exp(scores - scores.max(0))
    shares /= shares.sum(0)
    shares = cv2.resize(np.ascontiguousarray(shares.transpose(1, 2, 0)), image.shape[1::-1])
    best = shares.argmax(2)
    confidence = np.take_along_axis(shares, best[..., None], 2)[..., 0]
    cv2.imwrite(str(out / f"{path.stem}_label.png"), best.astype(np.uint8))
    cv2.imwrite(str(out / f"{path.stem}_confidence.png"), np.rint(255 * confidence).astype(np.uint8))


def main() -> None:
    """Command line."""
    spec, threads, out, *images = sys.argv[1:]
    cv2.setNumThreads(int(threads))
    family, _, path = spec.partition(":")
    run = {"onnx": open_onnx, "hf": open_hf}[family](path, int(threads))
    print("loaded", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for image in images:
        label(run, Path(image), Path(out))
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
