# Runs the pipeline and interrupts it once the first command is under way; the command goes on when that was noticed.
cdpipe run slow.cd >said 2>&1 &
until [ -e begun ]; do sleep 0.05; done
kill -INT $!
until grep -q stopping: said; do sleep 0.05; done
touch go
wait $!
code=$?
cat said
rm said begun go
exit $code
