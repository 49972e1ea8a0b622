#!/bin/sh
# An external signer for raft-kv: the signing key stays here, outside the cluster.
#
#   raft-kv run --data-dir DIR --external-signer ./signer.sh \
#       --external-signer-arg signing.pem --external-signer-arg signing.key
#
# It reads one request (a line of JSON) and answers with a certificate in PEM. It needs openssl 3
# and nothing else. Decide here whom you sign for: see docs/external-roots.md.
set -eu
cert=$1
key=$2
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

request=$(cat)
# The text of a field; no field that is used here has a quote in it.
text() { printf '%s' "$request" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
number() { printf '%s' "$request" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }

[ "$(number version)" = 1 ] || { echo "a version that is not known" >&2; exit 1; }
# openssl counts whole days from the moment at which it signs, which is a little later than now.
days=$((($(number not_after) - $(date +%s) - 60) / 86400))

case $(text kind) in
leaf)
    printf '%b' "$(text public_key_pem)" >"$work/public.pem"
    cat >"$work/extensions" <<END
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = $(text extended_key_usage)
subjectAltName = $(text subject_alt_names)
END
    openssl x509 -new -force_pubkey "$work/public.pem" -subj "$(text text)" \
        -CA "$cert" -CAkey "$key" -sha256 -days "$days" -extfile "$work/extensions"
    ;;
cross)
    # Another root is to replace this one: its key, certified by ours.
    printf '%b' "$(text csr_pem)" >"$work/request.pem"
    cat >"$work/extensions" <<END
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
END
    openssl x509 -req -in "$work/request.pem" \
        -CA "$cert" -CAkey "$key" -sha256 -days "$days" -extfile "$work/extensions"
    ;;
*)
    echo "a kind of request that is not known" >&2
    exit 1
    ;;
esac
