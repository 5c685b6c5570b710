"""The files that training leaves behind: an ONNX graph, and the tensors under their names, also where a run ended early."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.cli.output import Output

if TYPE_CHECKING:
    from edgewise.core.layout import Layout, Vector
    from edgewise.training.job import JobFile

UNTRAINED = "not written, no round was closed: the model is as untrained as it was made"


def write_weights(out: Output, path: Path, layout: Layout, vector: Vector, rounds: tuple[int, int]) -> bool:
    """Writes the tensors of a run's last closed round, and says of which.

    Args:
        out: Where to say it.
        path: Ends in `.npz` or `.safetensors`.
        layout: The model's.
        vector: float32[d].
        rounds: Closed rounds, and those that were asked for; 0 for the latter where it is not known.

    Returns:
        Whether they are written: without a closed round there is nothing that was trained.
    """
    from edgewise.models.saved_weights import save_weights

    done, asked = rounds
    if not done:
        out.line(f"caution: {path}: {UNTRAINED}")
        return False
    save_weights(path, layout, vector)
    out.line(f"wrote {path}{_early(done, asked)}")
    return True


class ModelFiles:
    """What a simulation leaves behind: an ONNX file, the tensors, or both. An export that fails is told before the first round.

    Attributes:
        cause: Why no ONNX file is written though one was asked for; "" if it is.

    Args:
        out: Where to print.
        task: Of the job.
        model: ONNX file, or None.
        weights: File of the tensors, or None; with one, training goes on though the export fails.

    Raises:
        TaskError: If the model cannot be exported and `weights` is not given.
    """

    def __init__(self, out: Output, task: Any, model: Path | None, weights: Path | None) -> None:
        from edgewise.core.errors import TaskError
        from edgewise.models.export import export_template

        self._out, self._task, self._model, self._weights, self.cause = out, task, model, weights, ""
        if model is not None:
            try:
                self._template = export_template(task)
            except TaskError as error:
                if weights is None:
                    raise
                self.cause = error.message
                out.line(f"caution: {model} will not be written: {self.cause}")

    def write(self, vector: Vector, job: JobFile, rounds_done: int) -> None:
        """Writes the files; none of a model that no round trained.

        Args:
            vector: The model.
            job: As read.
            rounds_done: Closed rounds.
        """
        from edgewise.core.files import write_atomic
        from edgewise.models.flat import layout_of
        from edgewise.models.graph.weights import with_weights
        from edgewise.training.local import own_patterns

        asked = job.training.rounds
        if self._weights is not None:
            write_weights(self._out, self._weights, layout_of(self._task.model()), vector, (rounds_done, asked))
        if self._model is not None and not self.cause:
            if not rounds_done:
                self._out.line(f"caution: {self._model}: {UNTRAINED}")
                return
            write_atomic(self._model, with_weights(*self._template, vector))
            self._out.line(f"wrote {self._model}{_early(rounds_done, asked)}")
            say_own(self._out, self._model, own_patterns(job.algorithm().exchanges[-1].local))


def say_own(out: Output, path: Path, own: Sequence[str]) -> None:
    """Says what a file lacks whose clients keep a part of the model to themselves; nothing where it is whole."""
    from edgewise.models.version import caution_of

    if caution := caution_of(f"the model in {path}", own):
        out.line(f"caution: {caution}")


def _early(done: int, asked: int) -> str:
    return f", of round {done} of {asked}" if done < asked else ""
