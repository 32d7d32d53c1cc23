"""Which file an index puts a tensor in."""

from pathlib import Path

import pytest

from lighthouse.titan.llama3.safetensors_header import INDEX_FILE, numbered_files


@pytest.mark.parametrize(
    ("index", "numbers"),
    [
        (
            '{"weight_map": {"a": "model-00001-of-00002.safetensors",'
            ' "b": "model-00002-of-00002.safetensors"}}',
            {"a": 1, "b": 2},
        ),
        ('{"weight_map": {"a": "model.safetensors"}}', None),  # as MLX writes it for one file
        ('{"weight_map": {"a": "v2-model.safetensors"}}', None),
        ('{"weight_map": {"a": 1}}', None),
        ('{"weight_map": {}}', None),
        ('{"a": 1}', None),
        ("[]", None),
        ('{"weight', None),
        (None, None),
    ],
)
def test_numbers_of_files(tmp_path: Path, index: str | None, numbers: dict[str, int]) -> None:
    if index is not None:
        (tmp_path / INDEX_FILE).write_text(index)
    assert numbered_files(str(tmp_path)) == numbers
