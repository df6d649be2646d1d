# until.sh COMMAND PATTERN [COUNT]: waits, for at most 30 seconds, until so many lines of what it prints have the pattern.
for _ in $(seq 300); do
  [ "$(sh -c "$1" 2>/dev/null | grep -c "$2")" -ge "${3:-1}" ] && exit 0
  sleep 0.1
done
echo "in vain: $1: $2"
exit 1
