import numpy as np
import pytest

from audioscore.muq_cpu.winograd import algorithm
from audioscore.muq_cpu.winograd_kernels import terms


@pytest.mark.parametrize("stride", [1, 2])
def test_terms_are_the_matrix(stride: int) -> None:
    for matrix in (algorithm(stride).a, algorithm(stride).b):
        again = np.zeros(matrix.shape)
        for row, (indices, factors, count) in enumerate(zip(*terms(matrix), strict=True)):
            again[row, indices[:count]] = factors[:count]
        np.testing.assert_allclose(again, matrix, rtol=1e-6)
