#!/usr/bin/env bash
# Fetches the Kafka broker's jars into a folder (default .tools/kafka/libs). Does nothing where they are there already.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
target="${1:-$here/../../.tools/kafka/libs}"
wanted="$(sha256sum "$here/pom.xml" | cut -d' ' -f1)"

if [[ -f "$target/.complete" && "$(cat "$target/.complete")" == "$wanted" ]]; then
  echo "Kafka: jars are in place."
  exit 0
fi
command -v mvn >/dev/null || { echo "Kafka needs Maven to fetch the broker: install it (apt-get install maven)." >&2; exit 1; }

echo "Kafka: fetching the broker's jars (about 45 MB) …"
mkdir -p "$(dirname "$target")"
fresh="$(mktemp -d "$(dirname "$target")/libs.XXXXXX")"
log="$(mktemp)"
trap 'rm -rf "$fresh" "$log"' EXIT
if ! mvn -B -q -f "$here/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
  -DincludeScope=runtime -DoutputDirectory="$fresh" >"$log" 2>&1; then
  echo "Kafka: Maven could not fetch the jars:" >&2
  grep -m 5 'ERROR' "$log" >&2 || tail -n 5 "$log" >&2
  exit 1
fi
echo "$wanted" >"$fresh/.complete"
chmod 755 "$fresh"
rm -rf "$target"
mv "$fresh" "$target"
echo "Kafka: $(find "$target" -name '*.jar' | wc -l) jars in place."

# Optional: with an archive of its classes the broker starts faster. Needs the Python environment and Java.
python="$here/../../.venv/bin/python"
if [[ -x "$python" ]] && command -v java >/dev/null; then
  "$python" -m downstack.local.kafka_archive "$target" || true
fi
