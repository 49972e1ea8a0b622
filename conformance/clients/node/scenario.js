// etcd3 of Node's registry: keys, transactions, watches, leases, locks, elections over gRPC.
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const { Etcd3 } = require("etcd3");

const tls = Boolean(process.env.CA);
const options = {
  hosts: process.env.ENDPOINTS.split(",").map((host) => `${tls ? "https" : "http"}://${host}`),
};
if (tls) {
  options.credentials = {
    rootCertificate: fs.readFileSync(process.env.CA),
    privateKey: fs.readFileSync(process.env.KEY),
    certChain: fs.readFileSync(process.env.CERT),
  };
}
const etcd = new Etcd3(options);

async function keys() {
  await etcd.delete().prefix("js/");
  await etcd.put("js/a").value("1");
  await etcd.put("js/b").value("2");
  assert.strictEqual(await etcd.get("js/a").string(), "1");
  assert.strictEqual(await etcd.get("js/none").string(), null);
  assert.deepStrictEqual(await etcd.getAll().prefix("js/").strings(), { "js/a": "1", "js/b": "2" });
  assert.deepStrictEqual(await etcd.getAll().prefix("js/").sort("Key", "Descend").limit(1).keys(), ["js/b"]);
  assert.strictEqual(await etcd.getAll().prefix("js/").count(), 2);
  assert.strictEqual((await etcd.delete().key("js/b")).deleted, "1");
}

async function transaction() {
  const done = await etcd.if("js/a", "Value", "==", "1").and("js/none", "Create", "==", 0)
    .then(etcd.put("js/t").value("yes")).else(etcd.put("js/t").value("no")).commit();
  assert.strictEqual(done.succeeded, true);
  assert.strictEqual(await etcd.get("js/t").string(), "yes");
}

async function watch() {
  const watcher = await etcd.watch().prefix("js/w/").create();
  const seen = [];
  const all = new Promise((resolve) => {
    watcher.on("put", (kv) => seen.push(["put", kv.key.toString(), kv.value.toString()]) === 3 && resolve());
    watcher.on("delete", (kv) => seen.push(["delete", kv.key.toString(), ""]) === 3 && resolve());
  });
  await etcd.put("js/w/1").value("x");
  await etcd.put("js/w/2").value("y");
  await etcd.delete().key("js/w/1");
  await all;
  assert.deepStrictEqual(seen, [["put", "js/w/1", "x"], ["put", "js/w/2", "y"], ["delete", "js/w/1", ""]]);
  await watcher.cancel();
}

async function lease() {
  const lease = etcd.lease(600);
  await lease.put("js/l").value("x");
  assert.strictEqual(await etcd.get("js/l").string(), "x");
  await lease.keepaliveOnce();
  await lease.revoke();
  assert.strictEqual(await etcd.get("js/l").string(), null);
}

async function lock() {
  const first = etcd.lock("js-lock");
  await first.acquire();
  await assert.rejects(etcd.lock("js-lock").acquire());
  await first.release();
  await etcd.lock("js-lock").do(async () => {});
}

async function election() {
  const election = etcd.election("js-election", 30);
  const campaign = election.campaign("me");
  await new Promise((resolve, reject) => campaign.on("elected", resolve).on("error", reject));
  assert.strictEqual(await election.leader(), "me");
  await campaign.resign();
}

(async () => {
  for (const part of [keys, transaction, watch, lease, lock, election]) {
    await part();
    console.log(`ok ${part.name}`);
  }
  etcd.close();
  process.exit(0);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
setTimeout(() => { console.error("no end in 120 s"); process.exit(1); }, 120000);
