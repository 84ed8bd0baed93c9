#!/usr/bin/env bash
# A gate with curl and jq alone: repair.sh MODEL REPAIR_DATA SPEC_JSON OUT_DIR
#
# In SPEC_JSON, datasets.repair is "upload:repair". Needs $ARCHREPAIR_URL and $ARCHREPAIR_API_KEY. $RUN_ID names the run:
# started again with the same one it goes on with the same job. Exit codes as those of `archrepair ci` (docs/ci.md).
set -euo pipefail
model=$1 data=$2 spec=$3 out=$4
api=$ARCHREPAIR_URL/v1
key=$(mktemp)
trap 'rm -f "$key"' EXIT
# From a file: what stands on a command line, everybody on the machine can read.
printf 'header = "Authorization: Bearer %s"\n' "$ARCHREPAIR_API_KEY" > "$key"
mkdir -p "$out"

# ask FILE CURL_OPTIONS…: the answer's body goes into the file; of a refusal it says why and ends the script.
ask() {
  local body=$1 status
  shift
  # With an Idempotency-Key, and for a GET anyway, sending again is safe.
  status=$(curl -sS -K "$key" --retry 5 --retry-connrefused --retry-all-errors --max-time 300 \
    -o "$body" -w '%{http_code}' "$@") || true
  case $status in
    2*) return ;;
    401 | 403) code=6 ;;
    429) code=7 ;;
    422 | 4*) case $(jq -r .code "$body" 2> /dev/null) in model.* | dataset.* | upload.*) code=3 ;; *) code=2 ;; esac ;;
    *) code=4 ;;
  esac
  echo "HTTP $status: $(jq -r '"\(.code): \(.detail) \(.hint)"' "$body" 2> /dev/null || head -c 500 "$body")" >&2
  exit "$code"
}

ask "$out/job.json" "$api/jobs" -H "Idempotency-Key: ${RUN_ID:-$(date +%s)-$$}" \
  -F "spec=<$spec;type=application/json" -F "model=@$model" -F "repair=@$data"
job=$(jq -r .id "$out/job.json")
echo "$job" >&2

deadline=$((SECONDS + ${TIMEOUT_SECONDS:-3300}))
until [ "$(jq -r .done "$out/job.json")" = true ]; do
  if [ "$SECONDS" -ge "$deadline" ]; then
    echo "$job is $(jq -r .status "$out/job.json"), and goes on" >&2
    exit 5
  fi
  wait=$((deadline - SECONDS < 30 ? deadline - SECONDS : 30))
  ask "$out/job.json" "$api/jobs/$job?wait=$wait"
done

status=$(jq -r .status "$out/job.json") verdict=$(jq -r .verdict "$out/job.json")
echo "$status, verdict $verdict"
case $status in
  cancelled) exit 9 ;;
  failed)
    jq -r '.error | "\(.code): \(.detail) \(.hint)"' "$out/job.json" >&2
    if [ "$(jq -r .error.category "$out/job.json")" = user ]; then exit 3; else exit 4; fi
    ;;
esac
has() { jq -e --arg kind "$1" 'any(.artifacts[]; .kind == $kind)' "$out/job.json" > /dev/null; }
if has model; then ask "$out/repaired.pt" "$api/jobs/$job/model"; fi
if has report_html; then ask "$out/report.html" "$api/jobs/$job/report?format=html"; fi
if has report_junit; then ask "$out/junit.xml" "$api/jobs/$job/report?format=junit"; fi
if has model; then
  expected=$(jq -r '[.artifacts[] | select(.kind == "model")][0].sha256' "$out/job.json")
  echo "$expected  $out/repaired.pt" | sha256sum --check --quiet || exit 4
fi
case $verdict in pass) exit 0 ;; fail) exit 1 ;; *) exit 8 ;; esac
