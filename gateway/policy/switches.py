"""Kill switches: turn a part off at once, for a while, without editing a policy.

Kept in one small file, so that a restart forgets none. Knows no request.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from gateway.policy.versions import write_atomically

# Name: (what throwing it does, what is then the case).
SWITCHES: Mapping[str, str] = {
    "semantic": "the semantic cache answers nothing",
    "exact": "the exact cache answers nothing",
    "local": "the local model is not asked",
    "all-large": "every routed request goes to the large model",
}


class SwitchState(msgspec.Struct, frozen=True, kw_only=True):
    """How one switch stands. ``thrown`` is the exceptional state."""

    name: str
    thrown: bool
    until_us: int | None = None  # None: until it is set back
    meaning: str = ""
    saved: bool = True  # False: the disk took no write, so a restart forgets this


class Switches:
    """The switches of one gateway. Reading one is a dictionary access."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._until: dict[str, int | None] = self._read()
        self.saved = True  # as it stands
        self.on_change: Callable[[], object] = int  # for whoever tells other processes

    def thrown(self, name: str, now_us: int) -> bool:
        """Whether a switch is thrown and has not expired."""
        if name not in self._until:
            return False
        until_us = self._until[name]
        return until_us is None or now_us < until_us

    def throw(self, name: str, until_us: int | None) -> None:
        """Throw a switch until then, or until it is set back. Raises KeyError."""
        self._change(name, {name: until_us})

    def reset(self, name: str) -> None:
        """Set a switch back. Raises KeyError."""
        self._change(name, {})

    @property
    def until_us(self) -> dict[str, int | None]:
        """What is thrown, and until when."""
        return self._until

    def follow(self, until_us: dict[str, int | None]) -> None:
        """Stand as the switches of another process, which keeps the file."""
        self._until = until_us

    def states(self, now_us: int) -> Sequence[SwitchState]:
        """Every switch."""
        return [
            SwitchState(
                name=name,
                thrown=self.thrown(name, now_us),
                until_us=self._until.get(name) if self.thrown(name, now_us) else None,
                meaning=meaning,
                saved=self.saved,
            )
            for name, meaning in SWITCHES.items()
        ]

    def _change(self, name: str, change: Mapping[str, int | None]) -> None:
        if name not in SWITCHES:
            raise KeyError(name)
        with self._lock:
            remaining = {key: until for key, until in self._until.items() if key != name}
            changed = {**remaining, **change}
            self._until = changed
            self._write()
        self.on_change()

    def save(self) -> None:
        """Keep what could not be kept so far, where the disk takes writes again."""
        if not self.saved:
            with self._lock:
                self._write()

    def _write(self) -> None:
        """A switch is for emergencies: a full disk is one, and keeps none from being thrown."""
        try:
            write_atomically(self._path, msgspec.json.encode(self._until))
            self.saved = True
        except OSError:
            self.saved = False

    def _read(self) -> dict[str, int | None]:
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=dict[str, int | None])
        except (OSError, msgspec.DecodeError):
            return {}
        return {name: until for name, until in found.items() if name in SWITCHES}
