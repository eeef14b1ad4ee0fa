"""The estimate of the database's time: how wrong it can be, and what moves it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from server.clock import SKEW, DatabaseClock

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
LEASE = timedelta(seconds=60)
SERVER = Path(__file__).parents[2] / "server"


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


@dataclass
class World:
    """True time, of which three clocks are made: the machine's, the time since boot, and the database's."""

    passed: float = 0.0
    """True seconds since the start."""
    boot_rate: float = 1.0
    database_rate: float = 1.0
    database_ahead: timedelta = timedelta()
    machine_ahead: timedelta = timedelta()
    clock: DatabaseClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = DatabaseClock(machine=self.machine, since_boot=self.since_boot)

    def machine(self) -> datetime:
        return START + seconds(self.passed) + self.machine_ahead

    def since_boot(self) -> int:
        return 10**15 + round(1e9 * self.passed * self.boot_rate)

    def database(self) -> datetime:
        return START + seconds(self.passed * self.database_rate) + self.database_ahead

    def measure(self, *, there: float = 0.0005, back: float = 0.0005) -> None:
        """Measure, with these seconds for the question and for the answer."""
        asked = self.clock.elapsed()
        self.passed += there
        read_time = self.database()
        self.passed += back
        self.clock.learn(read_time, asked=asked)

    @property
    def wrong_by(self) -> timedelta:
        return abs(self.clock() - self.database())


RATE = st.floats(0.9995, 1.0005)
TRIP = st.floats(0, 3)


@example(0.99992, 1.0001, [(0.0, 0.0, 0.0), (0.0, 0.0, 3.0), (0.0, 0.5, 0.0)])  # drift during a round trip
@given(RATE, RATE, st.lists(st.tuples(st.floats(0, 60), TRIP, TRIP), min_size=1))
def test_the_estimate_is_wrong_by_at_most_the_shortest_round_trip_and_the_drift_since(
    boot_rate: float, database_rate: float, measurements: list[tuple[float, float, float]]
) -> None:
    world = World(boot_rate=boot_rate, database_rate=database_rate, machine_ahead=seconds(61))
    shortest, since = 1e9, 0.0
    for pause, there, back in measurements:
        world.passed += pause
        since += pause + there + back
        world.measure(there=there, back=back)
        if there + back <= shortest + 0.0011 * since:
            shortest, since = there + back, 0.0
        assert world.wrong_by <= world.clock.error + seconds(1e-5)
        assert world.clock.error <= 1.004 * seconds(shortest + 0.0023 * since) + seconds(1e-5)


def test_before_the_first_measurement_it_is_the_machines_clock() -> None:
    world = World(machine_ahead=seconds(61))
    world.passed += 5
    assert world.clock() == world.machine()


def test_a_step_of_the_machines_clock_moves_nothing() -> None:
    world = World()
    world.measure()
    for step in (timedelta(minutes=10), timedelta(minutes=-10)):
        world.machine_ahead = step
        assert world.wrong_by <= seconds(0.001)
        world.measure()
        assert world.wrong_by <= seconds(0.001)
    assert not world.clock.has_stepped(within=LEASE)


def test_a_jump_of_the_databases_clock_is_followed_and_one_forward_is_remembered() -> None:
    world = World()
    for ahead, stepped in ((0.5, False), (-600, False), (0, True)):
        world.database_ahead = seconds(ahead)
        world.measure()
        assert world.wrong_by <= seconds(0.001)
        assert world.clock.has_stepped(within=LEASE) is stepped
    world.passed += 60
    assert not world.clock.has_stepped(within=LEASE)


def test_a_wrong_machine_clock_is_measured_and_warned_of_once() -> None:
    with capture_logs() as logs:
        world = World(machine_ahead=seconds(1.9))
        world.measure()
        world.machine_ahead = seconds(-61)
        world.measure()
        world.measure()
    assert round(SKEW._value.get()) == -61
    assert [(line["event"], round(line["skew_seconds"])) for line in logs] == [
        ("the machine's clock differs from the database's", -61)
    ]


def test_only_clocks_ids_tokens_and_spans_read_the_machines_clock() -> None:
    readers = {
        str(path.relative_to(SERVER))
        for path in SERVER.rglob("*.py")
        if "sandbox" not in path.parts
        for text in [path.read_text()]
        if any(name in text for name in ("datetime.now", "utc_now", "time.time(", "time.time_ns("))
    }
    # `doctor` compares the clocks; it gives the machine's to providers that send nothing. The console shows times.
    # Spans are laid beside those of other programs on the machine.
    assert readers == {"clock.py", "ids.py", "api/auth.py", "cli/doctor.py", "providers/console.py", "traces.py"}
