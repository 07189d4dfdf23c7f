"""Data that a `paper` scale names and that has to be obtained first."""


def require_generated(data: str, known: str = "world") -> None:
    """Raises ValueError where a configuration asks for data that are not generated on the spot."""
    if data != known:
        raise ValueError(
            f"data: expected {known!r}, which is generated, found {data!r}: this scale can be declared and"
            " inspected, but not run from here; third_party/manifest.yaml says how to obtain its data"
        )
