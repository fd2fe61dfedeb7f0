"""Where a system has no call that Linux has, another answer stands in."""

import os
import resource
import sys
import types

from kstep.processes import most_memory_MB, physical_cores


def test_cores_are_those_of_this_process_where_the_system_tells(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert physical_cores() == 3


def test_cores_are_counted_where_it_does_not(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert physical_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert physical_cores() == 1


def test_memory_is_in_the_unit_of_its_name(monkeypatch):
    monkeypatch.setattr(resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=2_000_000))
    monkeypatch.setattr(sys, "platform", "linux")
    assert most_memory_MB() == 2048.0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert most_memory_MB() == 2.0
