#!/bin/sh
# Makes a root and an intermediate that signs for one cluster, in the folder that is given:
# root.pem, root.key (put it away), signing.key, and chain.pem for `raft-kv init --ca-cert`.
set -eu
cd "$1"
umask 077
new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

new_key root.key
openssl req -x509 -new -key root.key -sha256 -days 3650 -out root.pem \
    -subj "/O=Example/CN=Example root for raft-kv" \
    -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign,cRLSign

# pathlen:1 and not 0: it signs a next root across when it is replaced.
cat >signing.conf <<END
basicConstraints = critical, CA:true, pathlen:1
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
new_key signing.key
openssl req -new -key signing.key -subj "/O=Example/CN=Example raft-kv signer" -out signing.csr
openssl x509 -req -in signing.csr -CA root.pem -CAkey root.key -sha256 -days 730 \
    -extfile signing.conf -out signing.pem

# The signing certificate first, then each one's issuer, the root last.
cat signing.pem root.pem >chain.pem
