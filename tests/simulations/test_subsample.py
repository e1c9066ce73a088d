"""Who takes part hangs on their own id, and on nobody else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.simulations.subsample import taking_part

ids = st.lists(st.text(max_size=8), max_size=30, unique=True)
shares = st.floats(1e-9, 1)


@given(ids, shares, shares)
def test_whoever_takes_part_does_at_every_larger_share(users, one, other):
    smaller, larger = sorted((one, other))
    assert not (taking_part(users, smaller) & ~taking_part(users, larger)).any()
    assert taking_part(users, 1.0).all()


@given(ids, ids, shares)
def test_others_have_no_say(users, others, share):
    alone = dict(zip(users, taking_part(users, share), strict=True))
    everybody = [*others, *(user for user in users if user not in others)]
    together = dict(zip(everybody, taking_part(everybody, share), strict=True))
    assert all(together[user] == chosen for user, chosen in alone.items())


def test_a_share_is_about_that_many_of_any_kind_of_ids():
    n = 4_000
    for users in ([str(u) for u in range(n)], [f"用户-{u}" for u in range(n)]):
        for share in (0.1, 0.5):
            found = taking_part(users, share).sum()
            # Five standard deviations of a binomial: a false alarm in two million.
            assert abs(found - n * share) < 5 * np.sqrt(n * share * (1 - share))
