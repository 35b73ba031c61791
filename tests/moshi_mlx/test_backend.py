"""What is asked of MLX on a GPU."""

import mlx.core as mx
import pytest

from moshi_mlx import backend, prepare_gpu

GIB = 1 << 30


def test_memory_is_bounded_by_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    wired: list[int] = []
    kept: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", wired.append)
    monkeypatch.setattr(mx, "set_cache_limit", kept.append)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert prepare_gpu(10 * GIB) is None
    assert wired == kept == []
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert prepare_gpu(5 * GIB) is None
    assert (wired, kept) == ([], [backend.CACHE_BYTES])
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 11 * GIB})
    for needed in (5 * GIB, 20 * GIB, None):
        assert prepare_gpu(needed) is None
    assert wired == [5 * GIB * 11 // 10, 11 * GIB, 11 * GIB]
    monkeypatch.setattr(mx, "device_info", dict)
    assert "swapped" in (prepare_gpu() or "")
