#!/bin/sh
# Makes the passwords of compose.yaml: `.env`, and the users of Redis with the hashes of theirs. Run it once.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
    echo "$PWD/.env exists already: nothing is changed. The volumes know its passwords; remove both to start anew." >&2
    exit 1
fi
umask 077
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
hash() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }
worker=$(random) trainer=$(random)
# Readable for the user of the Redis image: it holds hashes of random passwords only.
sed "s/@WORKER_SHA256@/$(hash "$worker")/; s/@TRAINER_SHA256@/$(hash "$trainer")/" deploy/users.acl.template > deploy/users.acl
chmod 644 deploy/users.acl
cat > .env <<END
POSTGRES_PASSWORD=$(random)
REDIS_WORKER_PASSWORD=$worker
REDIS_TRAINER_PASSWORD=$trainer
S3_ACCESS_KEY=$(random | cut -c 1-20)
S3_SECRET_KEY=$(random)
FLOWER_PASSWORD=$(random)
GRAFANA_PASSWORD=$(random)
END
echo "made .env and deploy/users.acl; next: docker compose up --wait"
