"""The loop of a prediction: members run on batches of rows until there are enough of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from puredrop.ensemble.confidence_sequence import ConfidenceSequence, expected_members
from puredrop.ensemble.prediction import Prediction
from puredrop.ensemble.running_statistics import RunningStatistics
from puredrop.inspection.finite_weights import check_weights
from puredrop.members.engine import Engine
from puredrop.members.inputs import Batch, Inputs, checked_number
from puredrop.members.masks import BLOCK
from puredrop.members.survey import Survey

__all__ = ["Noise", "PredictOptions", "Predictor"]

Noise = float | Tensor | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class PredictOptions:
    """The options of `DropoutEnsemble.predict`, checked.

    Raises:
        TypeError, ValueError: for an argument outside of what `predict` takes.
    """

    members: int = 64
    noise: Noise = None
    until: Literal["top_class"] | None = None
    tolerance: float | None = None
    bounds: tuple[float, float] | None = None
    confidence: float = 0.95
    max_members: int = 20_000
    batch_size: int = 1024
    memory: int = 256 * 2**20
    keep: int | None = None
    progress: bool | Callable[[int, int], None] = False
    first_row: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("members", 1),
            ("max_members", 1),
            ("batch_size", 1),
            ("memory", 1),
            ("keep", 0),
            ("first_row", 0),
        ):
            value = getattr(self, name)
            if name == "keep" and value is None:
                continue
            checked_number(name, value, least)
        if self.until not in (None, "top_class"):
            raise ValueError(f"until is {self.until!r}; expected 'top_class' (stop a row when its winner is certain)")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance is {self.tolerance}; expected more than 0, such as 0.02")
        if self.until is not None and self.tolerance is not None:
            raise ValueError("until and tolerance are given; expected one of them")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; expected a number between 0 and 1, such as 0.95")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds is {self.bounds}; expected (lowest, highest) output")

    @property
    def stops(self) -> bool:
        """Return whether each row stops at its own number of members."""
        return self.until is not None or self.tolerance is not None


class Predictor:
    """Runs an ensemble over data.

    Args:
        engine: the model.
        survey: where the model drops, and the memory that members take.
        class_dim: dimension of the classes in a member's output, if it is one of probabilities.
        options: of this call.
    """

    def __init__(self, engine: Engine, survey: Survey, class_dim: int | None, options: PredictOptions) -> None:
        self.engine = engine
        self.survey = survey
        self.class_dim = class_dim
        self.options = options
        self._limit = sys.maxsize  # members at once that memory has been seen to hold
        self._first = options.first_row
        self._kept_bytes = 0

    def run(self, inputs: Inputs, x: Any) -> Prediction:
        """Return the prediction of all rows."""
        with self.engine.opened():
            prediction = Prediction.joined(list(self.stream(inputs, x)))
        if self.options.progress is True:
            print(file=sys.stderr)
        return prediction

    def stream(self, inputs: Inputs, x: Any) -> Iterator[Prediction]:
        """Yield the prediction of one batch after the other; the engine must be open."""
        per_row = BLOCK * self.survey.per_row
        rows = int(
            max(1, min(self.options.batch_size, (self.options.memory - BLOCK * self.survey.per_member) // per_row))
        )
        for batch in inputs.batches(x, rows, self._first):
            yield self._stopping(batch) if self.options.stops else self._fixed(batch)
            self._first += batch.rows

    def _fixed(self, batch: Batch) -> Prediction:
        running = self._running(self.options.members)
        for outputs in self._blocks(batch, self.options.members):
            self._add(running, outputs, batch.rows)
            self._report(running.count)
            del outputs  # a block keeps its whole chunk alive: the two `del` save 17 of 370 MB
        return self._prediction(running, running.count)

    def _running(self, limit: int) -> RunningStatistics:
        keep = min(64, limit) if self.options.keep is None else self.options.keep
        if self._kept_bytes > self.options.memory:
            keep = 0
        return RunningStatistics(self.class_dim, self.engine.members.balanced, keep)

    def _add(self, running: RunningStatistics, outputs: Tensor, rows: int) -> None:
        """Add outputs to the sums; a regression with noise has its variance in the last dimension.

        Raises:
            ValueError: if outputs do not have a row for each of the input.
        """
        if outputs.dim() < 2 or outputs.shape[1] != rows:
            raise ValueError(
                f"the model returns shape {tuple(outputs.shape[1:])} for {rows} rows; expected rows first (pass "
                "task=function, from what it returns to a tensor that has them there)"
            )
        if callable(self.options.noise):
            running.add_noise(outputs[..., 1])
            outputs = outputs[..., 0]
        running.add(outputs)
        if self.options.keep is None and self._kept_bytes + running.kept_bytes > self.options.memory:
            self._kept_bytes = sys.maxsize
            running.forget_outputs()

    def _blocks(self, batch: Batch, number: int, first: int = 0) -> Iterator[Tensor]:
        """Yield the members' outputs a block at a time; as many as memory holds are computed at once."""
        at, parts = first, []
        while at < number:
            size = min(self._chunk(batch.rows), number - at)
            # Chunks are whole blocks, or parts of one block by powers of two, so that blocks are complete.
            size = size // BLOCK * BLOCK if size >= BLOCK else min(1 << size.bit_length() - 1, BLOCK - at % BLOCK)
            parts.append(self._try(batch, range(at, at + size)))
            at += len(parts[-1])
            if at % BLOCK == 0 or at >= number:
                blocks, parts = torch.cat(parts).split(BLOCK), []
                yield from blocks
                del blocks  # frees them before the next ones are computed

    def _chunk(self, rows: int) -> int:
        return min(self.survey.at_once(rows, self.options.memory), self._limit)

    def _try(self, batch: Batch, numbers: range) -> Tensor:
        """Run members; if memory does not suffice, run half as many at once from then on."""
        while True:
            try:
                return self.engine.outputs(batch, numbers, self._first)
            except (RuntimeError, MemoryError) as error:
                if not _is_memory(error) or len(numbers) == 1:
                    raise
            if self._limit == sys.maxsize:
                warnings.warn(
                    f"{len(numbers)} members at once did not fit into memory; going on with fewer (memory= sets how "
                    "much may be used)",
                    stacklevel=2,
                )
            self._limit = len(numbers) // 2
            numbers = numbers[: self._limit]

    def _report(self, members: int) -> None:
        progress = self.options.progress
        if callable(progress):
            progress(self._first, members)
        elif progress:
            print(f"\rrow {self._first}: {members} members", end="", file=sys.stderr, flush=True)

    def _prediction(
        self, running: RunningStatistics, number: int | Tensor, interval: Tensor | None = None
    ) -> Prediction:
        check_weights(self.engine.instrumented.root, running.mean)  # a mask may hide a weight from the survey
        variance = running.variance
        noise = self.options.noise
        if callable(noise):
            variance = variance + running.noise
        elif noise is not None:
            variance = variance + torch.as_tensor(noise, dtype=torch.float64)
        outputs = torch.cat(running.outputs) if running.outputs else None
        if outputs is not None and self.options.keep is None:
            self._kept_bytes += outputs.nbytes
        prediction = Prediction(
            running.mean.cpu(),
            variance.cpu(),
            running.standard_error.cpu(),
            number,
            interval=interval,
            skipped=self.survey.skipped,
            slow=self.survey.slow,
            outputs=outputs,
            class_dim=self.class_dim,
        )
        if self.class_dim is None:
            return prediction
        return replace(prediction, entropy=running.entropy.cpu(), expected_entropy=running.expected_entropy.cpu())

    def _stopping(self, batch: Batch) -> Prediction:
        """Run members on a batch until each row has enough; rows that have are left out of the next runs."""
        options = self.options
        running, confidence = self._running(options.max_members), None
        rows = torch.arange(batch.rows)
        parts: list[tuple[Tensor, Prediction]] = []
        at = 0
        while len(rows):
            number = min(at + BLOCK, options.max_members)
            for outputs in self._blocks(batch, number, at):
                self._add(running, outputs, batch.rows)
                values = self._unit(outputs[..., 0] if callable(options.noise) else outputs)
                if confidence is None:
                    confidence = ConfidenceSequence(self._alpha(values[0]))
                    self._announce(values)
                confidence.add(values)
            at = number
            assert confidence is not None
            self._report(at)
            is_done = self._is_done(confidence) | (at >= options.max_members)
            if bool(is_done.any()):
                part = self._prediction(running, running.count, self._interval(confidence))
                stopped = is_done.nonzero().flatten()
                parts.append((rows[stopped], part.rows(stopped)))
                going = (~is_done).nonzero().flatten()
                rows, batch = rows[going], batch.select(going)
                running.select(going)
                confidence.select(going)
        order = torch.cat([numbers for numbers, _ in parts]).argsort()
        return Prediction.joined([prediction for _, prediction in parts]).rows(order)

    def _unit(self, outputs: Tensor) -> Tensor:
        """Scale outputs to [0, 1] by the bounds.

        Raises:
            ValueError: if there are no bounds, or an output lies outside.
        """
        low, high = self.options.bounds or (0.0, 1.0)
        if self.class_dim is None and self.options.bounds is None:
            raise ValueError("tolerance needs bounds=(lowest, highest output) unless outputs are class probabilities")
        if float(outputs.min()) < low - 1e-6 or float(outputs.max()) > high + 1e-6:
            raise ValueError(
                f"bounds is {self.options.bounds}, but the members give {float(outputs.min()):.4g} to "
                f"{float(outputs.max()):.4g}; expected bounds that hold all outputs"
            )
        return ((outputs.cpu().double() - low) / (high - low)).clamp(0, 1)

    def _alpha(self, value: Tensor) -> float:
        """Return the error probability of a single mean, so that all means of a row hold together."""
        return (1 - self.options.confidence) / max(1, value[0].numel())

    def _scale(self) -> tuple[float, float]:
        low, high = self.options.bounds or (0.0, 1.0)
        return low, high - low

    def _announce(self, values: Tensor) -> None:
        if self.options.tolerance is None or self._first:
            return
        alpha, tolerance = self._alpha(values[0]), self.options.tolerance / self._scale()[1]
        spread = values.var(0).flatten(1).amax(1).median()
        least, most = (expected_members(tolerance, alpha, variance) for variance in (0.0, float(spread)))
        print(
            f"a tolerance of {self.options.tolerance:g} takes {least} members at least, for a typical row about {most}"
            + (f"; max_members={self.options.max_members} ends it before" if most > self.options.max_members else ""),
            file=sys.stderr,
        )

    def _is_done(self, confidence: ConfidenceSequence) -> Tensor:
        """Return whether each row has enough members, bool (rows,)."""
        lower, upper = confidence.lower, confidence.upper
        if self.options.tolerance is not None:
            half = (upper - lower).flatten(1) / 2 if upper.dim() > 1 else (upper - lower)[:, None] / 2
            return half.amax(1) <= self.options.tolerance / self._scale()[1]
        classes = self.class_dim if self.class_dim is not None else 1
        top = (lower + upper).argmax(classes, keepdim=True)
        others = upper.scatter(classes, top, -torch.inf).amax(classes)
        won: Tensor = lower.gather(classes, top).squeeze(classes) > others
        return won.flatten(1).all(1) if won.dim() > 1 else won

    def _interval(self, confidence: ConfidenceSequence) -> Tensor:
        low, width = self._scale()
        return torch.stack((confidence.lower, confidence.upper), -1) * width + low


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
