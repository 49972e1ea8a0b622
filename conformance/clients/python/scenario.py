"""etcd3, as its registry has it: keys, transactions, watches, leases, locks over gRPC."""

import os
import threading
import time

import etcd3


def client():
    host, port = os.environ["ENDPOINTS"].split(",")[0].rsplit(":", 1)
    tls = {}
    if os.environ.get("CA"):
        tls = {"ca_cert": os.environ["CA"], "cert_key": os.environ["KEY"], "cert_cert": os.environ["CERT"]}
    return etcd3.client(host=host, port=int(port), timeout=20, **tls)


def keys(etcd):
    etcd.delete_prefix("py/")
    etcd.put("py/a", "1")
    etcd.put("py/b", "2")
    value, meta = etcd.get("py/a")
    assert (meta.key, value, meta.version) == (b"py/a", b"1", 1), (value, meta)
    assert etcd.get("py/none") == (None, None)
    found = etcd.get_prefix("py/", sort_order="descend", sort_target="key")
    assert [value for value, _ in found] == [b"2", b"1"]
    assert etcd.delete("py/b")
    assert etcd.replace("py/a", "1", "3")
    assert not etcd.replace("py/a", "1", "4")


def transaction(etcd):
    done, answers = etcd.transaction(
        compare=[etcd.transactions.value("py/a") == "3", etcd.transactions.version("py/a") > 1],
        success=[etcd.transactions.put("py/t", "yes"), etcd.transactions.get("py/a")],
        failure=[etcd.transactions.put("py/t", "no")],
    )
    assert done, answers
    assert etcd.get("py/t")[0] == b"yes"
    done, _ = etcd.transaction(
        compare=[etcd.transactions.create("py/none") != 0],
        success=[],
        failure=[etcd.transactions.delete("py/t")],
    )
    assert not done
    assert etcd.get("py/t")[0] is None


def watch(etcd):
    events, cancel = etcd.watch_prefix("py/w/")
    etcd.put("py/w/1", "x")
    etcd.put("py/w/2", "y")
    etcd.delete("py/w/1")
    seen = []
    for event in events:
        seen.append((type(event).__name__, event.key, event.value))
        if len(seen) == 3:
            cancel()
            break
    assert seen == [
        ("PutEvent", b"py/w/1", b"x"),
        ("PutEvent", b"py/w/2", b"y"),
        ("DeleteEvent", b"py/w/1", b""),
    ], seen


def lease(etcd):
    lease = etcd.lease(600)
    etcd.put("py/l", "x", lease=lease)
    info = etcd.get_lease_info(lease.id)
    assert info.grantedTTL == 600 and 0 < info.TTL <= 600 and list(info.keys) == [b"py/l"], info
    lease.refresh()
    lease.revoke()
    assert etcd.get("py/l")[0] is None
    brief = etcd.lease(2)
    etcd.put("py/brief", "x", lease=brief)
    deadline = time.monotonic() + 30
    while etcd.get("py/brief")[0] is not None:
        assert time.monotonic() < deadline, "the lease did not end"
        time.sleep(0.1)


def lock(etcd):
    first = etcd.lock("py-lock", ttl=30)
    second = etcd.lock("py-lock", ttl=30)
    assert first.acquire()
    assert first.is_acquired()
    got = []
    waiting = threading.Thread(target=lambda: got.append(second.acquire(timeout=20)))
    waiting.start()
    assert not got
    first.release()
    waiting.join()
    assert got == [True]
    second.release()


def main():
    with client() as etcd:
        for part in (keys, transaction, watch, lease, lock):
            part(etcd)
            print(f"ok {part.__name__}", flush=True)
        status = etcd.status()
        assert status.version, status
        print("ok status")


main()
