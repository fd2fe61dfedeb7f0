"""What happens when a worker of the true physics dies, hangs, or says nonsense, and when a run is told to end."""

import logging
import os
import re
import signal
import time

import numpy as np
import pytest

from faulty import POISONED_NM, FaultySpec, springs
from kstep import interruption, npz
from kstep.errors import PhysicsError
from kstep.forces.journal import JournaledPool
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.pool import Reference, Truth
from kstep.processes import FIRST_CALL_S, CallTimes, Worker, WorkerLost, end_all


def geometries(n_rows, poisoned=(), seed=0):
    x = springs().build().rest + 0.01 * np.random.default_rng(seed).normal(size=(n_rows, 3, 3))
    x[list(poisoned), 0, 0] += 2 * POISONED_NM
    return x


def answered(notes):
    return [int(line.split()[0]) for line in notes.read_text().splitlines()] if notes.exists() else []


# workers that are lost -------------------------------------------------------------------------


def test_a_geometry_that_costs_three_workers_is_refused_and_the_others_are_answered(tmp_path, caplog):
    notes, x = tmp_path / "notes", geometries(6, poisoned=[2])
    with EvaluationPool(springs(fault="die", notes=str(notes)), 2) as pool:
        truth = pool.evaluate(x)
        assert truth.failed.tolist() == [False, False, True, False, False, False]
        assert "lost three workers" in truth.messages[2] and pool.failures == [truth.messages[2]]
        assert pool.true_calls == 6  # each once, the refused one too
        assert answered(notes).count(2) == 3
        again = pool.evaluate(x[[0, 1]])
        assert np.array_equal(again.energy, truth.energy[:2]) and pool.true_calls == 8
    with EvaluationPool(springs(), 1) as serial:
        fine = ~truth.failed
        right = serial.evaluate(x[fine])
        assert np.array_equal(right.energy, truth.energy[fine])
        assert np.array_equal(right.extra["dipole"], truth.extra["dipole"][fine])
    assert "refused" in caplog.text


def test_a_worker_killed_from_outside_is_replaced_and_asked_again_while_another_half_is_in_flight(tmp_path):
    x = geometries(8)
    with EvaluationPool(springs(), 1) as serial:
        right = serial.evaluate(x)
    with EvaluationPool(springs(slow_s=0.15), 2) as pool:
        first, second = pool.submit(x[:4], np.arange(4)), pool.submit(x[4:], np.arange(4, 8))
        os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        a, b = pool.collect(first), pool.collect(second)
        assert np.array_equal(np.concatenate([a.energy, b.energy]), right.energy)
        assert np.array_equal(np.concatenate([a.forces, b.forces]), right.forces)
        assert pool.true_calls == 8 and not pool.failures
        pool.forget()


def test_a_stopped_worker_and_a_hung_call_are_given_up_after_the_time_limit(tmp_path):
    x, once = geometries(4, poisoned=[3]), tmp_path / "once"
    with EvaluationPool(springs(fault="hang", once=str(once), call_limit_s=1.5), 2) as pool:
        os.kill(pool._workers[0].process.pid, signal.SIGSTOP)
        began = time.monotonic()
        truth = pool.evaluate(x)
        assert not truth.failed.any() and once.exists() and pool.true_calls == 4
        assert time.monotonic() - began > 1.5
    assert all(not worker.process.is_alive() for worker in pool._workers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_lost_while_it_loads_is_replaced(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr("kstep.processes.FEWEST_SECONDS", 1.0)
    monkeypatch.setattr("kstep.processes.TIMES_THE_MEDIAN", 6.0)  # of what the other one takes to load
    x, spec = geometries(4), springs(while_loading=number, once=str(tmp_path / "once"))
    with EvaluationPool(spec, 2) as pool:
        assert not pool.evaluate(x).failed.any() and pool.true_calls == 4
    said = [record.message for record in caplog.records if "before it could begin; another one" in record.message]
    assert len(said) == 1 and ("died (exit code -9)" if number == signal.SIGKILL else "was silent for") in said[0]


def test_workers_that_cannot_begin_end_a_run_in_a_sentence(tmp_path):
    with pytest.raises(PhysicsError, match="before it could begin, the third one"):
        EvaluationPool(springs(while_loading=signal.SIGKILL, once=str(tmp_path / "not/there")), 2)


@pytest.mark.parametrize("number, words", [(signal.SIGSTOP, "took nothing for"), (signal.SIGKILL, "died")])
def test_what_a_worker_is_to_run_is_not_waited_for_without_end(monkeypatch, number, words):
    """A mebibyte of it, of which a pipe holds a part, for a process that is stopped or killed before it reads."""
    send = Worker.send

    def late(self, message, *more):
        os.kill(self.process.pid, number)
        send(self, message, *more)

    monkeypatch.setattr(Worker, "send", late)
    monkeypatch.setattr("kstep.processes.START_S", 0.2)
    began = time.monotonic()
    worker = Worker(echo, (bytes(2**20),))
    with pytest.raises(WorkerLost, match=words):
        worker.receive(10.0)
    monkeypatch.undo()
    end_all([worker], None)
    assert time.monotonic() - began < 30.0 and not worker.process.is_alive()


def half_an_answer_and_stop(connection):
    os.write(connection.fileno(), b"\0\0\1\0half")  # of 256 bytes
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_full_disk_in_a_worker_is_that_in_the_run():
    with EvaluationPool(springs(fault="full disk"), 2) as pool, pytest.raises(OSError, match="no space") as failure:
        pool.evaluate(geometries(2, poisoned=[1]))
    assert failure.value.filename == "/scratch"


def test_half_an_answer_is_a_lost_worker():
    worker = Worker(half_an_answer_and_stop, ())
    worker._limit(0.2)
    with pytest.raises(WorkerLost, match="in the middle of an answer"):
        worker.receive(60.0)
    worker.kill()


def test_the_time_limit_follows_what_calls_cost_here():
    times = CallTimes()
    assert times.limit_for() == FIRST_CALL_S
    for seconds in (10.0, 10.0, 500.0):
        times.add(seconds)
    assert times.limit_for() == 500.0 and times.limit_for(3) == 1500.0  # 50 medians
    for _ in range(10):
        times.add(0.01)
    assert times.limit_for() == 60.0
    assert CallTimes(7.0).limit_for(2) == 14.0


def echo(connection, word):
    connection.send((word, os.environ["OMP_NUM_THREADS"], signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    connection.recv()


def test_a_worker_has_its_threads_whatever_the_shell_says_and_hears_no_signal_of_its_parent(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    workers = [Worker(echo, ("hello",), n) for n in (1, 3)]
    said = [worker.receive(60.0) for worker in workers]
    assert [(word, threads) for word, threads, _ in said] == [("hello", "1"), ("hello", "3")]
    assert {signal.SIGINT, signal.SIGUSR1} <= said[0][2]
    assert os.environ["OMP_NUM_THREADS"] == "8"
    os.kill(workers[0].process.pid, signal.SIGSTOP)
    with pytest.raises(WorkerLost, match="answered nothing"):
        workers[0].receive(0.0)
    for worker in workers:
        worker.kill()
        assert not worker.process.is_alive()


# numbers out of any reason ---------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["low", "nan", "inf", "nan forces"])
def test_a_number_out_of_any_reason_is_a_failed_call(fault):
    with EvaluationPool(springs(fault=fault), 1) as pool:
        truth = pool.evaluate(geometries(5, poisoned=[1]))
        assert truth.failed.tolist() == [False, True, False, False, False] and len(pool.failures) == 1
        assert np.isnan(truth.energy[1]) and np.isnan(truth.forces[1]).all() and pool.true_calls == 5
        later = pool.evaluate(geometries(2, poisoned=[0], seed=1))
        assert later.failed.tolist() == [True, False]


def truth_of(*energies):
    energy = np.array(energies)
    return Truth(energy, np.zeros((len(energy), 3, 3)), np.isnan(energy), ("",) * len(energy))


def test_the_reference_is_the_runs_own_zero_and_heeds_no_clash():
    for zero in (0.0, -2e6, 5e5):
        reference = Reference(3)  # 3 atoms: 3,000 kJ/mol
        assert not reference.check(truth_of(zero, zero + 50, zero + 1e7, zero + 3e8)).failed.any()
        checked = reference.check(truth_of(zero - 2900, zero - 3100, zero + 1e9))
        assert checked.failed.tolist() == [False, True, False] and "wrong electronic state" in checked.messages[1]


# what is known is not asked again --------------------------------------------------------------


def walk(pool, n, forget_at=()):
    """n questions to two rows, each where the last answer points: a dynamics of the answers."""
    x, energies = geometries(2), []
    for step in range(n):
        if step in forget_at:
            pool.forget()
        truth = pool.evaluate(x)
        energies.append(np.c_[truth.energy, truth.extra["dipole"]])
        x = x + 1e-4 * truth.forces + 1e-3 * np.sin(truth.energy)[:, None, None]
    return np.array(energies)


@pytest.mark.parametrize("warm, n_workers", [(False, 1), (True, 1), (True, 2)])
def test_a_run_cut_anywhere_is_told_what_it_knew_and_goes_on_bit_equal(tmp_path, monkeypatch, warm, n_workers):
    monkeypatch.setattr("kstep.forces.evaluator.HISTORY_S", 0.0)
    monkeypatch.setattr(FaultySpec, "surface", "springs")  # where notes are written is no physics
    at = (4, 9)
    with EvaluationPool(springs(warm_start=warm), 1) as pool:
        whole = walk(pool, 12, at)
    if warm:  # or nothing below would show whether guesses are kept
        with EvaluationPool(springs(warm_start=warm), 1) as pool:
            assert not np.array_equal(walk(pool, 12), whole)
    for cut in (1, 4, 7) if n_workers == 1 else (7,):
        notes, folder = tmp_path / f"notes{cut}", tmp_path / f"run{cut}.parts"
        spec = springs(warm_start=warm, notes=str(notes))
        with JournaledPool(EvaluationPool(spec, n_workers), folder) as pool:
            pool.begin(3, fresh=True)
            walk(pool, cut, at)
        with JournaledPool(EvaluationPool(spec, n_workers), folder) as pool:
            pool.begin(3)
            assert np.array_equal(walk(pool, 12, at), whole) and pool.true_calls == 24 and pool.wall_s > 0.0
        # with workers, guesses come back without those of HISTORY_S = 0, which they do not know of: every 5 s
        assert len(answered(notes)) == 24 if n_workers == 1 or not warm else 24 <= len(answered(notes)) <= 24 + 2 * cut


def test_without_their_guesses_answers_of_a_warm_backend_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(FaultySpec, "surface", "springs")
    monkeypatch.setattr("kstep.forces.evaluator.FIRST_HISTORY_S", 60.0)
    monkeypatch.setattr("kstep.forces.evaluator.HISTORY_S", 60.0)
    spec = springs(warm_start=True)
    with EvaluationPool(spec, 1) as pool:
        whole = walk(pool, 8)
    with JournaledPool(EvaluationPool(spec, 1), tmp_path) as pool:  # guesses are told once a minute: the first
        pool.begin(0, fresh=True)
        walk(pool, 5)
    with JournaledPool(EvaluationPool(spec, 1), tmp_path) as pool:
        pool.begin(0)
        assert np.array_equal(walk(pool, 8), whole) and pool.true_calls == 16 and pool.pool.true_calls == 14


def test_answers_of_another_surface_and_damaged_ones_are_asked_again(tmp_path, caplog):
    def part(n, restart=0, fresh=False, **settings):
        with JournaledPool(EvaluationPool(springs(**settings), 1), tmp_path) as pool:
            pool.begin(restart, fresh=fresh)
            found = walk(pool, n)
            return found, pool.pool.true_calls

    whole, _ = part(6, fresh=True)
    (path,) = tmp_path.glob("calls_*")
    found, asked = part(6)
    assert asked == 0 and np.array_equal(found, whole)
    assert part(6, warm_start=True)[1] == 12  # another surface
    assert "another energy surface" in caplog.text
    part(4, fresh=True)
    (path,) = tmp_path.glob("calls_*")
    path.write_bytes(path.read_bytes()[:-400])
    found, asked = part(6)
    assert asked == 12 and np.array_equal(found, whole) and "are made again" in caplog.text
    found, asked = part(6)
    assert asked == 0 and np.array_equal(found, whole)


def test_a_second_ctrl_c_while_answers_are_written_loses_none(tmp_path, monkeypatch):
    write, cut = npz.write_npz, []

    def once(path, arrays):
        cut.append(path)
        if len(cut) == 1:
            raise KeyboardInterrupt
        write(path, arrays)

    pool = JournaledPool(EvaluationPool(springs(), 1), tmp_path / "p")
    pool.begin(3, fresh=True)
    pool.evaluate(geometries(2))
    monkeypatch.setattr(npz, "write_npz", once)
    with pytest.raises(KeyboardInterrupt):
        pool.close()
    assert len(cut) == 2 and [path.name for path in (tmp_path / "p").glob("calls_*")] == ["calls_00000003_00000.npz"]


def test_answers_in_several_files_are_known_and_so_are_failures_among_them(tmp_path):
    x, spec = [geometries(3, poisoned=[1]), geometries(3, seed=1)], springs(fault="nan")

    def asked():
        with JournaledPool(EvaluationPool(spec, 1), tmp_path) as pool:
            pool.begin(0)
            found = []
            for at in x:
                found.append(pool.evaluate(at).energy)
                pool.flush()
            return np.array(found), list(pool.failures), pool.true_calls, pool.pool.true_calls

    energies, failures, n_calls, _ = asked()
    assert len(failures) == 1 and n_calls == 6 and len(list(tmp_path.glob("calls_*"))) == 2
    again, told, n_again, n_new = asked()
    assert np.array_equal(again, energies, equal_nan=True) and told == failures and (n_again, n_new) == (6, 0)


def test_answers_are_kept_for_the_restart_file_before_the_last(tmp_path):
    with JournaledPool(EvaluationPool(springs(), 1), tmp_path) as pool:
        for restart in (0, 5, 9, 14):
            pool.begin(restart)
            walk(pool, 2)
            pool.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "calls_00000009_00000.npz", "calls_00000014_00000.npz"]
    with JournaledPool(EvaluationPool(springs(), 1), tmp_path) as pool:  # the newest restart file is damaged: both help
        pool.begin(9)
        walk(pool, 2)
        pool.begin(14)
        walk(pool, 2)
        assert pool.true_calls == 8 and pool.pool.true_calls == 0
        pool.end()
    assert not list(tmp_path.iterdir())


# a question that takes long ----------------------------------------------------------------------


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_long_question_is_asked_in_pieces_and_a_kill_costs_one_of_them(tmp_path, monkeypatch, caplog, n_workers):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("kstep.forces.journal.FLUSH_S", 0.05)  # of which two calls are one piece
    monkeypatch.setattr("kstep.forces.journal.LINES_APART_S", 0.03)
    monkeypatch.setattr(FaultySpec, "surface", "springs")
    x, last = geometries(12), np.full((1, 3, 3), 0.1)
    with EvaluationPool(springs(), 1) as pool:
        pool.evaluate(last)
        whole = pool.evaluate(x)
    spec = springs(slow_s=0.02)
    with JournaledPool(EvaluationPool(spec, n_workers), tmp_path) as pool:
        pool.begin(0, fresh=True)
        pool.evaluate(last)  # what a call takes is known from here on
        truth = pool.evaluate(x)
        assert np.array_equal(truth.energy, whole.energy) and np.array_equal(truth.forces, whole.forces)
        assert np.array_equal(truth.extra["dipole"], whole.extra["dipole"])
        on_disk = sum(len(npz.read_npz(path)["row"]) for path in tmp_path.glob("calls_*"))
        assert on_disk >= 13 - 2 * 2 * n_workers  # what a kill here would have left
        monkeypatch.setattr(pool, "flush", lambda: None)
    assert re.search(r"\d+ of 12 true calls are answered, 0.02\d? s each", caplog.text)
    with JournaledPool(EvaluationPool(spec, n_workers), tmp_path) as pool:
        pool.begin(0)
        pool.evaluate(last)
        assert np.array_equal(pool.evaluate(x).energy, whole.energy)
        assert pool.true_calls == 13 and pool.pool.true_calls == 13 - on_disk


def test_first_energies_are_asked_for_together_so_that_a_wrong_one_shows(tmp_path, monkeypatch):
    monkeypatch.setattr("kstep.forces.journal.FLUSH_S", 0.0)
    with JournaledPool(EvaluationPool(springs(fault="low"), 1), tmp_path) as pool:
        assert pool.evaluate(geometries(4, poisoned=[0])).failed.tolist() == [True, False, False, False]


# being told to end -----------------------------------------------------------------------------


def test_a_file_exit_ends_a_run_and_one_of_an_earlier_run_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "LOOKS_APART_S", 0.0)
    (tmp_path / "EXIT").touch()
    with JournaledPool(EvaluationPool(springs(), 1), tmp_path / "x.npz.parts") as pool:
        pool.begin(0, fresh=True)
        walk(pool, 2)
        os.utime(tmp_path / "EXIT", (1, 1))
        with pytest.raises(interruption.EndedSoftly) as ended:
            walk(pool, 2)
    assert ended.value.code == 4 and str(tmp_path / "EXIT") in ended.value.words
    assert list((tmp_path / "x.npz.parts").glob("calls_*"))


def test_sigusr1_writes_what_is_known_and_sigterm_ends_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = signal.getsignal(signal.SIGTERM)
    with interruption.signals_heeded(), JournaledPool(EvaluationPool(springs(), 1), tmp_path / "p") as pool:
        pool.begin(0, fresh=True)
        walk(pool, 2)
        assert not list(tmp_path.glob("p/calls_*"))
        signal.raise_signal(signal.SIGUSR1)
        walk(pool, 1)
        assert list(tmp_path.glob("p/calls_*")) and "SIGUSR1" in caplog.text
        with pytest.raises(interruption.Terminated):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # does not cut short what the first one began
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sigterm_that_nobody_heard_is_raised_where_the_run_looks_next(tmp_path, monkeypatch):
    class Deaf:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)  # what is raised in here reaches nobody
            for _ in range(100):
                pass

    with interruption.signals_heeded():
        look = interruption.ExitFile([tmp_path])
        deaf = Deaf()
        del deaf
        look.check()  # it may still be on its way
        monkeypatch.setattr(interruption, "UNHEARD_S", 0.0)
        with pytest.raises(interruption.Terminated):
            look.check()
        look.check()  # once


@pytest.mark.parametrize("number, error", [(signal.SIGTERM, interruption.Terminated),
                                           (signal.SIGINT, KeyboardInterrupt)])
def test_an_end_waits_for_what_is_not_to_be_broken_into(number, error):
    done = []

    class Deaf:
        def __del__(self):
            os.kill(os.getpid(), number)
            for _ in range(100):
                pass
            done.append("cleared away")

    @interruption.unbroken
    def inner():
        deaf = Deaf()
        del deaf
        done.append("inner")

    @interruption.unbroken
    def outer():
        inner()
        done.append("outer")

    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        with interruption.signals_heeded():
            with pytest.raises(error) as ended:
                outer()
            assert ended.type is error and done == ["cleared away", "inner", "outer"]
            assert interruption.unbroken(lambda: 3)() == 3  # once
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)  # at once, where nothing holds it
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, found)


def sleeps_before_it_ends(connection, folder):
    connection.send("here")
    connection.recv()
    time.sleep(1.5)  # as for a slow disk: no work of its own
    (folder / "written").touch()


def never_ends(connection):
    connection.send("here")
    while True:
        pass


def test_patience_with_a_worker_that_ends_is_of_its_own_work_and_not_of_the_clock(tmp_path, monkeypatch):
    slow, busy = Worker(sleeps_before_it_ends, (tmp_path,)), Worker(never_ends, ())
    assert slow.receive(60.0) == busy.receive(60.0) == "here"
    monkeypatch.setattr("kstep.processes.MOST_PATIENCE", 60.0)  # or the clock of a busy machine is what is tested
    began = time.monotonic()
    end_all([slow], "end", patience_s=0.5)
    assert (tmp_path / "written").is_file() and slow.process.exitcode == 0
    end_all([busy], "end", patience_s=0.5)
    assert busy.process.exitcode == -signal.SIGKILL and time.monotonic() - began < 20.0
