"The notebook of a cell."


def test_a_report_that_cannot_be_written_stops_nobody(tmp_path, monkeypatch):
    from ddrobust_nb.grid import notebook as module

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    report = module.write_failure(tmp_path / "out", "RuntimeError: x")
    assert (
        report.state == "failed"
        and report.error == "RuntimeError: x (and its report could not be written: No space left on device)"
    )
