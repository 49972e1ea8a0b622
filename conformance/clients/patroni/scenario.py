"""Patroni's own etcd v3 store, driven through a lock and failover loop; PostgreSQL is not needed.

Two instances, `pg1` and `pg2`, take turns being leader. Where KILL names a process, it is the member
the leader talks to, and the loop goes on without it.
"""

import os
import signal
import time

from patroni.dcs import get_dcs

LIMIT = 60


def store(name):
    hosts = os.environ["ENDPOINTS"].split(",")
    etcd3 = {"hosts": hosts}
    if os.environ.get("CA"):
        etcd3.update(protocol="https", cacert=os.environ["CA"], cert=os.environ["CERT"], key=os.environ["KEY"])
    return get_dcs({
        "etcd3": etcd3, "scope": "conformance", "namespace": "/patroni/", "name": name,
        "ttl": 20, "loop_wait": 2, "retry_timeout": 8,
    })


def until(what, check):
    deadline = time.monotonic() + LIMIT
    last = None
    while time.monotonic() < deadline:
        try:
            found = check()
            if found:
                return found
        except Exception as error:  # Patroni's loop goes on after any error of its store, too.
            last = error
        time.sleep(0.1)
    raise AssertionError(f"not within {LIMIT} s: {what} ({last!r})")


def leader_is(dcs, name):
    cluster = dcs.get_cluster()
    return cluster.leader is not None and cluster.leader.name == name and cluster


def member(dcs, state):
    return dcs.touch_member({"conn_url": f"postgres://{dcs._name}/", "state": state, "role": "replica"})


def race(one, two):
    until("the old cluster is gone", lambda: one.delete_cluster() or one.get_cluster().is_empty())
    assert one.initialize(create_new=True)
    assert not two.initialize(create_new=True), "the initialize key is taken once"
    assert one.initialize(create_new=False, sysid="42")
    assert one.set_config_value('{"ttl":20}')
    until("both members are seen", lambda: member(one, "running") and member(two, "running")
          and len(one.get_cluster().members) == 2)
    assert one.attempt_to_acquire_leader()
    assert not two.attempt_to_acquire_leader(), "the leader key is taken once"
    cluster = until("pg2 sees the leader", lambda: leader_is(two, "pg1"))
    assert cluster.initialize == "42", cluster


def keep(one, two):
    cluster = leader_is(one, "pg1")
    for lsn in (100, 200, 300):
        assert one.update_leader(cluster, lsn)
    until("pg2 sees the position", lambda: two.get_cluster().status.last_lsn == 300)
    began = time.monotonic()
    two.watch(None, 0.5)
    assert time.monotonic() - began < 10


def killed(one, two):
    if not os.environ.get("KILL"):
        return
    os.kill(int(os.environ["KILL"]), signal.SIGKILL)
    until("the leader stays leader without the member",
          lambda: one.update_leader(leader_is(one, "pg1"), 400) and member(one, "running"))
    until("the other one follows", lambda: member(two, "running") and leader_is(two, "pg1"))


def hand_over(one, two):
    until("the failover key is set", lambda: two.manual_failover("pg1", "pg2"))
    cluster = until("pg1 sees it", lambda: (lambda c: c.failover and c.failover.candidate == "pg2" and c)(one.get_cluster()))
    assert one.delete_leader(cluster.leader, 500)
    until("pg2 becomes leader", lambda: two.attempt_to_acquire_leader())
    until("pg1 sees it", lambda: leader_is(one, "pg2"))
    assert not one.attempt_to_acquire_leader()
    assert two.manual_failover("", "")
    assert not one.delete_leader(leader_is(one, "pg2").leader), "only the owner deletes the key"


def lost(one, two):
    # pg2 renews nothing from here on: its lease ends, and pg1 takes over.
    began = time.monotonic()
    until("pg1 becomes leader when pg2 is gone",
          lambda: member(one, "running") and not one.get_cluster().leader and one.attempt_to_acquire_leader())
    until("pg1 is leader", lambda: leader_is(one, "pg1"))
    print(f"   the lock was free {time.monotonic() - began:.0f} s after its owner fell silent")
    assert one.delete_cluster()


def main():
    one, two = store("pg1"), store("pg2")
    for part in (race, keep, killed, hand_over, lost):
        part(one, two)
        print(f"ok {part.__name__}", flush=True)


main()
os._exit(0)
