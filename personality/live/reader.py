"""Starting the reading process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from personality.live.asked_process import AskedProcess
from personality.live.shared_weights import SharedWeights


class ReaderProcess(AskedProcess):
    """A process that answers from shared weights; see `reader_process` for the questions.

    Args:
        folder: of the base.
        shared: the weights; this process writes them.
        how: `in-place` reads whatever is in the memory, `copied` copies one step's weights before each reply.

    Raises:
        PersonaError: when it cannot start.
    """

    def __init__(self, folder: Path, shared: SharedWeights, how: Literal["in-place", "copied"] = "in-place") -> None:
        super().__init__(
            "the reading process",
            "personality.live.reader_process",
            (str(folder.absolute()), str(shared.descriptor), how),
            descriptors=(shared.descriptor,),
        )
        try:
            self.answer()  # that it is ready
        except BaseException:
            self.close()
            raise
