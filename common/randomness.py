"""Where secret coins and noise come from.

AES-256 in counter mode turns a key into a keystream, the keystream into uniform numbers, and those
into normal ones. A ``csprng`` source is keyed by the operating system and is what a privacy claim
rests on; a ``seeded`` source is keyed by a seed, repeatable, and protects nothing from whoever
knows or guesses the seed.
"""

from __future__ import annotations

import hashlib
import hmac
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from .errors import ConfigError
from .mechanism import Randomness

_CHUNK = 1 << 16  # normal numbers at a time, so that the working memory stays in cache
_SPARSE = 1 / 64  # up to this rate a choice of members is cheaper than a coin for each


class NoiseSource:
    """A stream of random numbers; every draw moves on, none is handed out twice.

    Make one with :meth:`csprng` or :meth:`seeded`. Neither pickles nor copies: a copy of a stream
    would repeat noise, and the difference of two releases with the same noise is the raw data.
    """

    def __init__(self, *, kind: Randomness, key: bytes) -> None:
        self.kind: Randomness = kind
        self._restart(key)

    def _restart(self, key: bytes) -> None:
        self._key = key
        self._process = os.getpid()
        self._keystream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def csprng(cls) -> NoiseSource:
        """A source keyed by the operating system; no two are ever alike."""
        return cls(kind="csprng", key=os.urandom(32))

    @classmethod
    def seeded(cls, *, seed: int, label: str) -> NoiseSource:
        """A repeatable source: the same seed and label give the same numbers on any machine."""
        key = hashlib.sha256(f"fedprofile noise\0{seed}\0{label}".encode()).digest()
        return cls(kind="seeded", key=key)

    def __repr__(self) -> str:
        return f"NoiseSource({self.kind})"

    def __reduce__(self) -> str:
        raise TypeError("a NoiseSource can't be copied or pickled: a copy would repeat its noise")

    def child(self, label: str) -> NoiseSource:
        """An independent stream, say for a round.

        A seeded child depends on the source's key and ``label`` only, not on what was drawn before,
        so a resumed run finds the streams of its rounds again. A csprng child gets a fresh key, so
        that a label used twice repeats nothing.
        """
        if self.kind == "csprng":
            return NoiseSource.csprng()
        return NoiseSource(kind="seeded", key=hmac.digest(self._key, label.encode(), "sha256"))

    def words(self, n: int) -> NDArray[np.uint64]:
        """uint64 [n], each of the 2⁶⁴ values equally likely."""
        if self.kind == "csprng" and os.getpid() != self._process:
            self._restart(os.urandom(32))  # a forked process would repeat its parent's numbers
        return np.frombuffer(self._keystream.update(bytes(8 * n)), dtype="<u8").astype(
            np.uint64, copy=False
        )

    def uniforms(self, n: int) -> NDArray[np.float64]:
        """float64 [n], uniform on the 2⁵² midpoints (i + ½)·2⁻⁵², so never 0 nor 1."""
        return ((self.words(n) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def integers(self, n: int, *, below: int) -> NDArray[np.int64]:
        """int64 [n], uniform on 0 … ``below`` − 1 without modulo bias."""
        limit = np.uint64(2**64 - 1 - 2**64 % below)
        words = self.words(n)
        while (beyond := words > limit).any():
            words = np.where(beyond, self.words(n), words)
        return (words % np.uint64(below)).astype(np.int64)

    def normal(self, shape: tuple[int, ...], *, stddev: float) -> NDArray[np.float64]:
        """float64 of ``shape``, independent N(0, stddev²).

        Each number is (x₁ + x₂ + x₃ + x₄)/2 of four normal ones by the inverse CDF: the sum hides
        the gaps between floating-point normal numbers by which a noisy value betrays the exact one
        (Holohan & Braghin 2021, §5.1; the attack: Mironov 2012).

        Raises:
            ConfigError: ``stddev`` is negative, infinite or NaN.
        """
        if not 0 <= stddev < np.inf:
            raise ConfigError(f"stddev of noise must be 0 or above and finite, got {stddev}")
        from scipy.special import ndtri  # slow to load, and a ledger names a kind of source only

        noise = np.zeros(shape, dtype=np.float64)
        if stddev > 0:
            flat = noise.reshape(-1)
            for start in range(0, flat.size, _CHUNK):
                part = flat[start : start + _CHUNK]
                four = ndtri(self.uniforms(4 * part.size)).reshape(4, part.size)
                part[:] = four.sum(axis=0) * (stddev / 2)
        return noise

    def poisson_sample(self, *, population_size: int, probability: float) -> NDArray[np.int64]:
        """Members of 0 … ``population_size`` − 1, each taken independently with ``probability``.

        Where members are few of many, a binomial count and then a choice without replacement: that
        has exactly the law of a coin per member and costs only what the sample does.

        Returns:
            int64 [sampled], ascending; perhaps empty.

        Raises:
            ConfigError: ``probability`` is outside [0, 1] or ``population_size`` is negative.
        """
        if population_size < 0 or not 0 <= probability <= 1:
            raise ConfigError(
                "a Poisson sample needs population_size ≥ 0 and probability in [0, 1], "
                f"got {population_size} and {probability}"
            )
        if probability > _SPARSE:
            return np.flatnonzero(self.uniforms(population_size) < probability)
        from scipy.stats import binom  # slow to load, and a ledger names a kind of source only

        count = int(binom.ppf(self.uniforms(1)[0], population_size, probability))
        chosen = np.empty(0, dtype=np.int64)
        while missing := count - len(chosen):
            # No member is treated unlike another, so every set of this size is equally likely.
            chosen = np.union1d(chosen, self.integers(missing, below=population_size))
        return chosen
