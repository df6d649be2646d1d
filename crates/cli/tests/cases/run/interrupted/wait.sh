# Says that it is under way, and goes on when it may.
touch begun
until [ -e go ]; do sleep 0.05; done
