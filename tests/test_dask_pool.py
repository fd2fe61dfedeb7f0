"""True calls on the workers of a Dask cluster: the numbers of the local pool, each counted once, whoever is lost."""

import logging
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import kstep
from conftest import ForceNetwork, start_state
from faulty import FaultySpec, springs
from kstep.cli import main
from kstep.errors import PhysicsError, UserError
from kstep.forces import dask_cluster, dask_pool
from kstep.forces.dask_pool import DaskPool, calls_per_task
from kstep.forces.journal import JournaledPool
from kstep.forces.local_pool import EvaluationPool
from kstep.forces.pool import make_pool
from kstep.runs.loop import macro_steps
from kstep.runs.network_dynamics import Carrier
from kstep.schemes import Metropolis
from kstep.schemes.state import per_replica
from test_workers import geometries, walk

dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
QUIET = dict(threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL)


@pytest.fixture(scope="module")
def cluster():
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "10m"}), \
            distributed.LocalCluster(n_workers=2, processes=True, **QUIET) as cluster:
        yield cluster
        nannies = list(cluster.workers.values())
        workers = [nanny.process.process for nanny in nannies]
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)  # nobody stays behind


@pytest.fixture
def scheduler(cluster):
    """Its address, once both workers are there."""
    wait_until(lambda: len(cluster.scheduler_info["workers"]) == 2)
    return cluster.scheduler_address


def wait_until(holds, limit_s=60.0):
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def kill_a_worker(cluster, address=None):
    nanny = next(n for n in cluster.workers.values() if address in (None, n.worker_address))
    os.kill(nanny.pid, signal.SIGKILL)
    return nanny.worker_address


def test_the_numbers_of_the_local_pool_each_counted_once(scheduler, tmp_path):
    notes, x = tmp_path / "notes", geometries(7, poisoned=[2])
    with EvaluationPool(springs(fault="low"), 1) as local, make_pool(springs(
            fault="low", notes=str(notes), scheduler=scheduler)) as pool:
        assert isinstance(pool, DaskPool) and pool.n_workers == 2
        for seed, rows in ((0, None), (1, np.array([3, 6, 5]))):
            at = x if rows is None else geometries(3, seed=seed)
            right, found = local.evaluate(at, rows), pool.evaluate(at, rows)
            assert np.array_equal(found.energy, right.energy, equal_nan=True)
            assert np.array_equal(found.forces, right.forces, equal_nan=True)
            assert np.array_equal(found.extra["dipole"], right.extra["dipole"], equal_nan=True)
            assert found.messages == right.messages and found.failed.sum() == (rows is None)
        assert pool.true_calls == local.true_calls == 10 and pool.failures == local.failures
        energies = pool.collect(pool.submit(x, want_forces=False))
        assert np.isnan(energies.forces).all() and pool.true_calls == 17 and pool.cpu_s > 0.0
    by_row = [line.split() for line in notes.read_text().splitlines()]
    assert len(by_row) == 17 and len({process for _, process in by_row}) == 2
    assert all(len({process for row, process in by_row if row == asked}) == 1 for asked in "0123456")  # pinned


def test_guesses_stay_with_their_row_and_a_cut_run_gets_them_back(scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(FaultySpec, "surface", "springs")
    at, spec = (4, 9), springs(warm_start=True)
    with EvaluationPool(spec, 1) as local:
        whole = walk(local, 12, at)
    spec = replace(spec, scheduler=scheduler)
    with JournaledPool(make_pool(spec), tmp_path) as pool:
        pool.begin(3, fresh=True)
        assert np.array_equal(walk(pool, 7, at), whole[:7])
    with JournaledPool(make_pool(spec), tmp_path) as pool:
        pool.begin(3)
        assert np.array_equal(walk(pool, 12, at), whole) and pool.true_calls == 24
        assert pool.pool.true_calls < 24


def test_a_full_disk_at_a_worker_is_that_in_the_run_and_a_bug_is_a_traceback(scheduler, caplog):
    x = geometries(2, poisoned=[1])
    with make_pool(springs(fault="full disk", scheduler=scheduler)) as pool, \
            pytest.raises(OSError, match="no space") as failure:
        pool.evaluate(x)
    assert failure.value.filename == "/scratch" and "the Dask worker at tcp://" in caplog.text
    with make_pool(springs(fault="bug", scheduler=scheduler)) as pool, pytest.raises(RuntimeError, match="Traceback"):
        pool.evaluate(x)


def metropolis(pool, n_steps, between=lambda done: None):
    """Six chains in two half-batches; the last State and Info."""
    rest, rng = springs().build().rest, np.random.default_rng(5)
    scheme = Metropolis(Carrier(ForceNetwork(lambda x: -700.0 * (x - rest))), pool.masses, 0.03, 6, 300.0)
    state = start_state(pool, geometries(6))
    for done, found in enumerate(macro_steps(scheme, pool, state, rng, n_steps, n_parts=2)):
        between(done)
    return found


def test_a_run_that_loses_a_worker_is_bit_equal_to_one_on_the_local_pool(cluster, scheduler, tmp_path, caplog):
    with EvaluationPool(springs(), 2) as local:
        right = metropolis(local, 12)
    notes = tmp_path / "notes"
    with make_pool(springs(slow_s=0.03, notes=str(notes), scheduler=scheduler)) as pool:
        found = metropolis(pool, 12, lambda done: kill_a_worker(cluster) if done == 4 else None)
        assert pool.true_calls == 6 * 13 and not pool.failures
    assert "has left the cluster" in caplog.text
    assert 6 * 13 <= len(notes.read_text().splitlines()) <= 6 * 13 + 6  # what was lost was asked again, and no more
    assert 0.05 < right[1].accepted.mean() or right[0].energy.std() > 0
    for own, other in zip(found, right):
        for name, value in per_replica(own).items():
            assert np.array_equal(value, getattr(other, name), equal_nan=True), name


def test_a_row_whose_worker_is_lost_goes_on_with_its_last_guess(cluster, scheduler):
    x = [geometries(2, seed=seed) for seed in range(2)]
    with EvaluationPool(springs(warm_start=True), 1) as local:
        right = [local.evaluate(at).energy for at in x]
    with make_pool(springs(warm_start=True, scheduler=scheduler)) as pool:
        assert np.array_equal(pool.evaluate(x[0]).energy, right[0])  # the first answer of a row tells its guess
        kill_a_worker(cluster, pool._of_row[0])
        assert np.array_equal(pool.evaluate(x[1]).energy, right[1]) and pool.true_calls == 4
        pool.forget()
        again = pool.evaluate(x[1]).energy
    assert not np.array_equal(again, right[1])  # or nothing above would show it


@pytest.mark.parametrize("n_rows, deadly", [(4, [1]), (40, [31, 38])], ids=["first", "behind quick ones"])
def test_a_geometry_costs_exactly_three_workers_and_the_others_are_answered(scheduler, tmp_path, n_rows, deadly):
    notes, x = tmp_path / "notes", geometries(n_rows, poisoned=deadly)
    others = np.delete(np.arange(n_rows), deadly)
    with make_pool(springs(fault="die", notes=str(notes), scheduler=scheduler)) as pool:
        truth = pool.evaluate(x)
        assert np.flatnonzero(truth.failed).tolist() == deadly and pool.true_calls == n_rows
        assert all("lost three workers" in truth.messages[row] for row in deadly) and len(pool.failures) == len(deadly)
    asked = Counter(int(line.split()[0]) for line in notes.read_text().splitlines())
    assert [asked[row] for row in deadly] == [3] * len(deadly)
    with EvaluationPool(springs(), 1) as local:
        assert np.array_equal(local.evaluate(x[others]).energy, truth.energy[others])


def test_who_may_have_killed_a_worker():
    def sent(place, status, in_turn=False):
        return dask_pool._Sent(place, None, SimpleNamespace(status=status), in_turn)

    answered, now, behind = sent(0, "lost"), sent(1, "pending"), sent(2, "pending")
    known, alone, next_ = sent(3, "finished", True), sent(4, "pending", True), sent(5, "pending", True)
    for waiting, suspects in (([answered, now, behind], [now, behind]), ([known, alone, next_], [alone]),
                              ([answered, now, alone, next_], [now]), ([known, answered], []), ([], [])):
        assert dask_pool._may_have_been_at(waiting) == suspects


def test_a_seat_that_was_lost_with_the_scheduler_is_nobodys_doing(scheduler):
    with make_pool(springs(scheduler=scheduler)) as pool:
        cluster = pool._cluster
        first, second = list(cluster.seated)
        cluster.seated[first].seat.cancel()
        wait_until(lambda: cluster.seated[first].seat.status == "cancelled")
        assert [(one.address, one.is_its_own_doing) for one in cluster.look(at_once=True)] == [(first, False)]
        cluster.seated[first] = dask_cluster.Seated(SimpleNamespace(status="lost"), "gone")
        assert [(one.address, one.is_its_own_doing) for one in cluster.look(at_once=True)] == [(first, True)]
        assert second in cluster.seated
        wait_until(lambda: pool._look() or len(cluster.seated) == 2)


def test_a_worker_that_comes_back_at_its_old_address_is_another_one(monkeypatch):
    """As where a firewall leaves it a few ports: Dask builds the seat anew, and asks it as if nothing were lost."""
    monkeypatch.setattr(dask_cluster, "LOOKS_APART_S", 1e9)  # nobody sees that it was away
    x = [geometries(2, seed=seed) for seed in range(2)]
    with EvaluationPool(springs(warm_start=True), 1) as local:
        right = [local.evaluate(at).energy for at in x]
    first = 20_000 + os.getpid() % 10_000
    ports = f"{first}:{first + 20}"
    with distributed.LocalCluster(n_workers=1, processes=True, worker_port=ports, **QUIET) as narrow, \
            make_pool(springs(warm_start=True, scheduler=narrow.scheduler_address)) as pool:
        address = kill_a_worker(narrow)
        wait_until(lambda: address not in narrow.scheduler_info["workers"])
        wait_until(lambda: address in narrow.scheduler_info["workers"])
        assert np.array_equal(pool.evaluate(x[0]).energy, right[0]) and list(pool._workers) == [address]
        tokens = {seated.token for seated in pool._cluster.seated.values()}
        kill_a_worker(narrow)
        assert np.array_equal(pool.evaluate(x[1]).energy, right[1]) and pool.true_calls == 4
        assert tokens.isdisjoint(seated.token for seated in pool._cluster.seated.values())


def test_a_call_that_hangs_is_given_up_and_its_nanny_starts_another_worker(scheduler, tmp_path):
    x, once = geometries(3, poisoned=[2]), tmp_path / "once"
    with make_pool(springs(fault="hang", once=str(once), call_limit_s=1.5, scheduler=scheduler)) as pool:
        truth = pool.evaluate(x)
        assert not truth.failed.any() and once.exists() and pool.true_calls == 3 and len(pool._cluster.barred) == 1
        wait_until(lambda: pool._look() or pool.n_workers == 2)


def test_what_waits_is_told_to_end(scheduler):
    class Ended(Exception):
        pass

    def end():
        raise Ended

    pool = make_pool(springs(slow_s=3.0, scheduler=scheduler))
    ticket, pool.attend, began = pool.submit(geometries(1)), end, time.monotonic()
    with pytest.raises(Ended), pool:
        pool.collect(ticket)
    assert time.monotonic() - began < 2.5


def test_a_question_holds_as_many_calls_as_keep_the_scheduler_up_with_all_workers():
    assert calls_per_task(None, 64) == 1
    assert calls_per_task(0.002, 2) == 50 and calls_per_task(1.0, 2) == 1
    assert calls_per_task(1.0, 10_000) == 40 and calls_per_task(60.0, 10_000) == 1
    (question,) = dask_pool.Question(1, "evaluate", (geometries(5), np.arange(5), True), np.arange(5)).parts(9)
    assert [part.mine.tolist() for part in question.parts(2)] == [[0, 1], [2, 3], [4]]


def test_rows_are_dealt_evenly_from_the_first_worker_on(scheduler):
    with make_pool(springs(scheduler=scheduler)) as pool, make_pool(springs(scheduler=scheduler), first=1) as other:
        pool.evaluate(geometries(5))
        other.evaluate(geometries(1))
        assert sorted(list(pool._of_row.values()).count(address) for address in pool._workers) == [2, 3]
        assert pool._of_row[0] != other._of_row[0]


def test_a_worker_that_comes_later_gets_its_share_and_the_guesses_that_go_with_it():
    x = [geometries(4, seed=seed) for seed in range(2)]
    with distributed.LocalCluster(n_workers=1, processes=False, **QUIET) as growing, EvaluationPool(
            springs(warm_start=True), 1) as local, make_pool(springs(
                warm_start=True, scheduler=growing.scheduler_address)) as pool:
        assert np.array_equal(pool.evaluate(x[0]).energy, local.evaluate(x[0]).energy)
        growing.scale(2)
        wait_until(lambda: pool._look() or pool.n_workers == 2)
        assert np.array_equal(pool.evaluate(x[1]).energy, local.evaluate(x[1]).energy)
        assert sorted(list(pool._of_row.values()).count(address) for address in pool._workers) == [2, 2]


# who is asked ----------------------------------------------------------------------------------


def test_a_scheduler_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 1.0)
    for where, said in (("tcp://127.0.0.1:1", "no Dask scheduler answers at tcp://127.0.0.1:1"),
                        (str(tmp_path / "none.json"), "none.json does not exist"), ("nonsense://x", "no Dask")):
        assert main(["sample", "O", "--scheme", "plain", "--config", "qm_fast", "--steps", "1", "--replicas", "1",
                     "--num-workers", "1", "--device", "cpu", "--scheduler", where,
                     "--out", str(tmp_path / "x.npz")]) == 2
        err = capsys.readouterr().err
        assert said in err and "Traceback" not in err


def test_workers_of_another_version_or_with_threads_are_refused(scheduler, monkeypatch):
    with pytest.raises(UserError, match="threads: 3 needs workers that a nanny starts with OMP_NUM_THREADS=3"):
        make_pool(springs(threads=3, scheduler=scheduler))
    with monkeypatch.context() as other:
        other.setattr(kstep, "__version__", "9.9")
        with pytest.raises(UserError, match=r"has kstep 0\.\S+, and this process 9\.9"):
            make_pool(springs(scheduler=scheduler))
    with distributed.LocalCluster(n_workers=1, processes=False, **{**QUIET, "threads_per_worker": 2}) as wide, \
            pytest.raises(UserError, match="it has 2 threads; start workers with --nthreads 1"):
        make_pool(springs(scheduler=wide.scheduler_address))


def test_a_cluster_without_workers_is_waited_for_and_one_that_ends_is_said_to_be_gone(caplog, monkeypatch):
    monkeypatch.setattr(dask_cluster, "REPLY_S", 2.0)
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 5.0)  # how long the client tries to come back, too
    with distributed.LocalCluster(n_workers=0, processes=False, **QUIET) as late:
        pool = DaskPool.__new__(DaskPool)
        monkeypatch.setattr(pool, "attend", lambda: late.scale(1), raising=False)
        DaskPool.__init__(pool, springs(scheduler=late.scheduler_address))
        assert "has no worker; waiting for one" in caplog.text
        with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pool:
            assert np.isfinite(pool.evaluate(geometries(3)).energy).all()
            late.close()
            with pytest.raises(PhysicsError, match="the Dask scheduler at .+ is gone"):
                walk(pool, 1000)


# whole commands --------------------------------------------------------------------------------


def same_frames(a, b):
    assert np.array_equal(a.pos, b.pos) and np.array_equal(a.vel, b.vel) and np.array_equal(a.Epot, b.Epot)
    assert a.metadata["true_calls"] == b.metadata["true_calls"]


def test_commands_write_what_they_write_without_a_scheduler(scheduler, tmp_path):
    plain = dict(scheme="plain", dt_fs=0.5, steps=4, replicas=3, burn_in_steps=0, workers=1, seed=3, device="cpu")
    md = dict(length_ps=0.005, equilibration_ps=0.002, hot_length_ps=0.0, redraw_interval_ps=0.005, replicas=1,
              workers=1, seed=1)
    found = []
    for where in (None, scheduler):
        out = tmp_path / str(where is None)
        run = kstep.sample("O", "qm_fast", out=f"{out}.npz", scheduler=where, **plain)
        md_run = kstep.simulate("O", "qm_fast", out=f"{out}_md.npz", **md, **({"scheduler": where} if where else {}))
        found.append((run.trajectory, md_run.trajectory))
    for here, away in zip(*found):
        same_frames(here, away)
