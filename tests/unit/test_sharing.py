"""After a slow transaction, fewer instances share one; when all are fast again, more do."""

from __future__ import annotations

from controller.billing.sharing import Sharing


def test_slow_transaction_lets_a_quarter_of_its_instances_share_one() -> None:
    sharing = Sharing(3000)
    sharing.observe(1.5, 2800)
    assert sharing.begin_cycle() == 700
    assert (sharing.parts(700), sharing.parts(701), sharing.parts(2800)) == (1, 2, 4)


def test_limit_grows_back_while_every_transaction_is_fast() -> None:
    sharing = Sharing(3000)
    sharing.observe(1.5, 2800)
    sharing.begin_cycle()
    limits = []
    for _ in range(4):
        sharing.observe(0.2, 700)
        limits.append(sharing.begin_cycle())
    assert limits == [1400, 2800, 3000, 3000]


def test_limit_stays_while_a_transaction_is_neither_slow_nor_fast() -> None:
    sharing = Sharing(3000)
    sharing.observe(1.5, 2800)
    sharing.begin_cycle()
    sharing.observe(0.7, 700)
    assert sharing.begin_cycle() == 700


def test_one_instance_is_the_least() -> None:
    sharing = Sharing(3000)
    sharing.observe(2, 3)
    assert sharing.begin_cycle() == 1
    assert Sharing(3000).parts(0) == 0
