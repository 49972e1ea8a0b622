"""aetcd, as its registry has it: keys, transactions, watches, leases, locks over gRPC."""

import asyncio
import os

import aetcd


def client():
    host, port = os.environ["ENDPOINTS"].split(",")[0].rsplit(":", 1)
    tls = {}
    if os.environ.get("CA"):
        tls = {"ca_cert": os.environ["CA"], "cert_key": os.environ["KEY"], "cert_cert": os.environ["CERT"]}
    return aetcd.Client(host=host, port=int(port), timeout=20, **tls)


async def keys(etcd):
    await etcd.delete_prefix(b"py/")
    await etcd.put(b"py/a", b"1")
    await etcd.put(b"py/b", b"2")
    got = await etcd.get(b"py/a")
    assert (got.key, got.value, got.version) == (b"py/a", b"1", 1), got
    assert await etcd.get(b"py/none") is None
    found = await etcd.get_prefix(b"py/", sort_order="descend", sort_target="key")
    assert [kv.value for kv in found] == [b"2", b"1"], list(found)
    assert await etcd.delete(b"py/b")
    assert await etcd.replace(b"py/a", b"1", b"3")
    assert not await etcd.replace(b"py/a", b"1", b"4")


async def transaction(etcd):
    done, answers = await etcd.transaction(
        compare=[etcd.transactions.value(b"py/a") == b"3", etcd.transactions.version(b"py/a") > 1],
        success=[etcd.transactions.put(b"py/t", b"yes"), etcd.transactions.get(b"py/a")],
        failure=[etcd.transactions.put(b"py/t", b"no")],
    )
    assert done, answers
    assert (await etcd.get(b"py/t")).value == b"yes"
    done, _ = await etcd.transaction(
        compare=[etcd.transactions.create(b"py/none") != 0],
        success=[],
        failure=[etcd.transactions.delete(b"py/t")],
    )
    assert not done
    assert await etcd.get(b"py/t") is None


async def watch(etcd):
    async def follow(started):
        seen = []
        stream = await etcd.watch_prefix(b"py/w/")
        started.set()
        async for event in stream:
            seen.append((str(event.kind), event.kv.key, event.kv.value))
            if len(seen) == 3:
                return seen

    started = asyncio.Event()
    task = asyncio.create_task(follow(started))
    await started.wait()
    await etcd.put(b"py/w/1", b"x")
    await etcd.put(b"py/w/2", b"y")
    await etcd.delete(b"py/w/1")
    seen = await asyncio.wait_for(task, 20)
    assert seen == [("PUT", b"py/w/1", b"x"), ("PUT", b"py/w/2", b"y"), ("DELETE", b"py/w/1", b"")], seen


async def lease(etcd):
    lease = await etcd.lease(600)
    await etcd.put(b"py/l", b"x", lease=lease)
    info = await etcd.get_lease_info(lease.id)
    assert info.grantedTTL == 600 and 0 < info.TTL <= 600 and list(info.keys) == [b"py/l"], info
    await lease.refresh()
    await lease.revoke()
    assert await etcd.get(b"py/l") is None
    brief = await etcd.lease(2)
    await etcd.put(b"py/brief", b"x", lease=brief)
    deadline = asyncio.get_running_loop().time() + 30
    while await etcd.get(b"py/brief") is not None:
        assert asyncio.get_running_loop().time() < deadline, "the lease did not end"
        await asyncio.sleep(0.1)


async def lock(etcd):
    first = etcd.lock(b"py-lock", ttl=30)
    second = etcd.lock(b"py-lock", ttl=30)
    assert await first.acquire()
    assert await first.is_acquired()
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    await first.release()
    assert await asyncio.wait_for(waiting, 20)
    await second.release()


async def main():
    async with client() as etcd:
        for part in (keys, transaction, watch, lease, lock):
            await part(etcd)
            print(f"ok {part.__name__}", flush=True)
        status = await etcd.status()
        assert status.version, status
        print("ok status")


asyncio.run(asyncio.wait_for(main(), 120))
