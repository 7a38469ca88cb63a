"""What `train --live` asks for, and a publisher made of it."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass

from personality.builds.steering_part import Choice
from personality.live.earlier import Earlier, find_earlier, live_folder
from personality.live.publisher import Publisher
from personality.live.snapshot_export import SnapshotExport
from personality.live.snapshot_process import SnapshotProcess
from personality.making.run_folder import RunFolder
from personality.manifests.errors import UsageError
from personality.manifests.repository import Repository
from personality.serving.client import Client
from personality.serving.deploy import deploy
from personality.serving.served import what_serves
from personality.vectors.training.run_log import RunLog
from personality.versions.history import History


@dataclass(frozen=True)
class LiveOptions:
    """How a run is served while it goes on; no part of what it makes.

    Attributes:
        url: of the server.
        every: steps between snapshots; None for every checkpoint.
        scale: of the vector in training.
        keep: leave the server on the last snapshot when the run has ended.
    """

    url: str
    every: int | None = None
    scale: float = 1.0
    keep: bool = False


def check_live(repository: Repository, options: LiveOptions) -> tuple[Client, Earlier]:
    """Make sure that a server can be published to, before a run costs anything.

    Returns:
        The server, and what it serves.

    Raises:
        UsageError: the URL is none, or the scale would switch the vector off.
        ServerError, IncompatibleError, PersonaError: see `find_earlier`.
    """
    if not math.isfinite(options.scale) or options.scale == 0:
        raise UsageError(f"snapshots at scale {options.scale:g} show nothing", "give a scale such as `--live-scale 1`")
    client = Client(options.url)
    return client, find_earlier(repository, client)


def make_publisher(
    repository: Repository, behavior: str, run: RunFolder, options: LiveOptions, client: Client, earlier: Earlier
) -> Publisher:
    """A publisher of a run's snapshots.

    Args:
        repository: where.
        behavior: in training.
        run: its folder.
        options: how.
        client, earlier: from `check_live`.

    Raises:
        ServerError, DeployError: the server has a killed run's snapshot, and could not be taken back from it.
        IncompatibleError, NotFoundError, CorruptError: the newest version cannot be composed for a server.
    """
    folder = live_folder(repository) / run.id
    if what_serves(client).version != earlier.version:  # what a killed run left; its folder is to go
        deploy(client, earlier.folder, back=earlier.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    earlier.write(folder)
    steering: Choice = "plugin" if earlier.plugin else "bake"  # as in what is served now: its form has to stay
    head = History(repository).head()
    SnapshotExport(repository, head, behavior, options.scale, folder, steering)  # what cannot be is told at once
    exports = SnapshotProcess(repository, head, behavior, options.scale, folder, steering)
    log = RunLog(run.log)
    return Publisher(client, exports, earlier, folder, log, behavior, every=options.every, keep=options.keep)
