"""TensorBoard: the metrics, samples and settings of a run as event files.

Settings are a session of TensorBoard's HParams page. They have a file of their own, the first one of the folder, which
a run that resumes replaces: TensorBoard keeps the first settings that it finds in a folder. No summary of the whole
experiment is written, because TensorBoard would read that of one run alone. Without it the page has the leaves and
metrics of all runs below its --logdir.
"""

import logging
import os
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.api_pb2 import STATUS_SUCCESS
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.record_writer import masked_crc32c

from ..data.checksums import write_whole, writing

# Of a loss that is not finite the run tells by itself; tensorboardX would warn at each report without saying where.
logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)

FLUSH_SECONDS = 10
SETTINGS = "events.out.tfevents.0000000000.settings"
"""Name of the file of settings, which comes before the names that tensorboardX gives."""


class TensorBoard:
    """TensorBoard's event file, written in this thread: errors in tensorboardX's own thread would be lost.

    Args:
      workdir: folder of the run; events go into its folder tensorboard/.
      start_step: the step that the run resumes from; 0 for a new run.
      config: the settings of the run, as nested mappings; with none there is no session.
    """

    def __init__(self, workdir: epath.Path, start_step: int, config: Mapping[str, Any]):
        self._directory, self._flushed = workdir / "tensorboard", 0.0
        self._directory.mkdir(parents=True, exist_ok=True)
        for former in self._directory.glob("events.*") if not start_step else ():
            former.unlink()
        self._config = config
        if config:
            write_whole(self._directory / SETTINGS, _record(_session("session_start_info", _start_of(config))))
        self._file = EventsWriter(os.fspath(self._directory / "events"), f".{start_step}")
        begin = start_step + 1 if start_step else 0  # TensorBoard hides what earlier runs wrote from there on
        self._write(begin, file_version="brain.Event:2")
        self._write(begin, session_log=SessionLog(status=SessionLog.START))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=summary.scalar(name, value))
        if abs(time.time() - self._flushed) > FLUSH_SECONDS:  # also when the clock was set back
            with writing(self._directory):
                self._file.flush()
            self._flushed = time.time()

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        lines = [list(rows[0]), ["---"] * len(rows[0])] if rows else []
        lines += [[_markdown(cell) for cell in row.values()] for row in rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self._write(step, summary=summary.text(name, text))

    def close(self, finished: bool) -> None:
        if finished and self._config:
            end = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time.time())
            self._file.write_event(_session("session_end_info", end))
        with writing(self._directory):
            self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        self._file.write_event(Event(wall_time=time.time(), step=step, **content))


def _start_of(config: Mapping[str, Any]) -> SessionStartInfo:
    """The session of a run with its settings."""
    start = SessionStartInfo(start_time_secs=time.time())
    for name, value in _scalars(config):
        field = {bool: "bool_value", int: "number_value", float: "number_value"}.get(type(value), "string_value")
        setattr(start.hparams[name], field, value)
    return start


def _session(kind: str, info: SessionStartInfo | SessionEndInfo) -> Event:
    """The event that begins or ends a session of the HParams page."""
    content = HParamsPluginData(version=0, **{kind: info}).SerializeToString()
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="hparams", content=content))
    value = Summary.Value(tag=f"_hparams_/{kind}", metadata=metadata)
    return Event(wall_time=time.time(), step=0, summary=Summary(value=[value]))


def _record(event: Event) -> bytes:
    """An event as a record of an event file: length, its checksum, data, its checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(sums) + data + next(sums)


def _scalars(section: Mapping[str, Any], path: str = "") -> list[tuple[str, bool | int | float | str]]:
    """The leaves of a config by their dotted names, lists as text, without those that are None."""
    found = []
    for name, value in section.items():
        if isinstance(value, Mapping):
            found += _scalars(value, f"{path}{name}.")
        elif value is not None:
            found.append((f"{path}{name}", value if isinstance(value, bool | int | float) else str(value)))
    return found


def _markdown(cell: str) -> str:
    return str(cell).replace("|", "\\|").replace("\n", "<br>")
