import numpy as np

from fedprofile.common.weights import hash_of_weights


def test_hash_of_weights_tells_names_shapes_and_values_apart():
    weights = {"a": np.float32([[1, 2], [3, 4]]), "b": np.float32([5])}
    others = [
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"].reshape(4), "b": weights["b"]},
        {"a": weights["a"] + np.float32(1e-6), "b": weights["b"]},
    ]
    hashes = {hash_of_weights(w) for w in [weights, *others]}
    assert len(hashes) == 4
    fortran = {"b": weights["b"], "a": np.asfortranarray(weights["a"])}
    assert hash_of_weights(fortran) == hash_of_weights(weights)
