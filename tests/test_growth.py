"""What the page on growth says follows from what was measured, and is what is published."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

import growth
from growth_limits import ATOMS, CORES, TRUTHS, WORKERS, Costs, Truth, bytes_per_call, limits, stops_at, throughput
from growth_page import is_busy, page, svg
from kstep.forces.dask_pool import OVERHEAD_S

COSTS = Costs(scheduler_task_s=1e-3, client_task_s=5e-4, client_call_s=1e-5, worker_task_s=2e-3, step_s=5e-6,
              file_bytes_per_s=1e8, xtb_call_s=2e-3, latency_s=5e-3)
MINUTE = Truth("DFT", 60.0, 1000, "#000000")


def test_a_run_is_as_fast_as_its_slowest_part():
    second = replace(MINUTE, call_s=1.0)
    found = limits(second, 100, COSTS, 2, chunk=1)
    assert found["workers"] == pytest.approx(100 / 1.002) and found["scheduler"] == pytest.approx(1000.0)
    assert found["network"] == pytest.approx(2 / (1000 * 5e-6)) and found["client"] == pytest.approx(1 / 5.1e-4)
    assert "network" not in limits(second, 100, COSTS, None)
    n, part = stops_at(second, COSTS, 2)  # 400 steps of 5 us a second on two cores
    assert part == "network" and n / 1.002 > found["network"] > (n - 1) / 1.002
    assert stops_at(second, replace(COSTS, file_bytes_per_s=10.0 * bytes_per_call(ATOMS)), 64) == (
        11, "file system")
    assert stops_at(MINUTE, COSTS, 64) == (0, "")
    slow = stops_at(replace(MINUTE, call_s=0.05, network_steps=1), replace(COSTS, scheduler_task_s=0.1), 64)
    assert slow[1] == "scheduler"


def test_chunks_keep_a_scheduler_up_that_is_as_fast_as_they_suppose():
    for call_s in (0.002, 1.0, 60.0):
        for n_workers in WORKERS:
            costs = replace(COSTS, scheduler_task_s=OVERHEAD_S)
            found = limits(replace(MINUTE, call_s=call_s), n_workers, costs, None)
            assert found["scheduler"] > found["workers"], (call_s, n_workers)


def test_page_and_figure_are_what_was_measured():
    record = json.loads(growth.RESULT.read_text())
    for name, by_workers in throughput(Costs(**record["costs"])).items():
        for n, found in by_workers.items():
            published = record["throughput"][name][n]
            assert published["calls_per_s"] == pytest.approx(found["calls_per_s"], rel=1e-3)
            assert (published["replicas"], published["held_by"]) == (found["replicas"], found["held_by"])
    assert growth.PAGE.read_text() == page(record) and growth.PICTURE.read_text() == svg(record)
    picture = ElementTree.fromstring(svg(record))
    assert len(picture.findall("{*}polyline")) == len(TRUTHS) * len(CORES)
    assert len(picture.findall("{*}circle")) == len(record["checks"]) > 1
    assert {check["workers"] for check in record["checks"]} <= {1, 2, growth.SLEEPERS}
    busy = is_busy(record)
    assert busy == ("what an idle machine shows" in page(record).replace("\n", " "))
    for check in record["checks"]:
        assert (0.1 if busy else 0.7) < check["calls_per_s"] / check["expected"] < 1.2, check
