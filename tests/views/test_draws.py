import hashlib
from itertools import product

import numpy as np

from matalign.views import draws


def test_splitmix_gives_the_published_sequence():
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert draws.bits(np.array([1234567]), 3)[0].tolist() == expected
    assert draws.uniforms(np.array([1234567]), 1)[0, 0] == (expected[0] >> 11) / 2**53


def test_view_seed_is_a_hash_of_all_its_parts():
    digest = hashlib.blake2b(b"1/2/mp-3/4", digest_size=8).digest()
    assert draws.view_seed(1, 2, "mp-3", 4) == int.from_bytes(digest, "little") // 2
    assert len({draws.view_seed(s, e, m, v) for s, e, m, v in product((0, 1), (0, 1), ("mp-1", "mp-2"), (0, 1))}) == 16
