//! CD06xx: strategies and capabilities.

codes! {
    REFUSED = "CD0601" Error "the environment can't do this strategy";
    "What a strategy promises depends on the target and the router. Where it can't be kept, the pipeline is refused before anything runs, \
     rather than half-way through a rollout."
    bad "environment test {\n  target kubernetes { context = \"test\" }\n  traffic service\n}\nservice web { manifest = \"k8s/*.yaml\" }\nstage up { deploy web to test { canary { step 10% for 5m } } }\n"
    good "environment test {\n  target kubernetes { context = \"test\" }\n  traffic istio { virtual_service = \"web\" }\n}\nservice web { manifest = \"k8s/*.yaml\" }\nstage up { deploy web to test { canary { step 10% for 5m } } }\n"

    STEPS_NOT_RISING = "CD0602" Error "canary steps do not rise";
    "Each step of a canary gives the candidate a larger share than the one before it. A step that is no larger would take users away \
     from the candidate again, or do nothing."
    bad "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstage up {\n  deploy web to here { canary { step 50% for 5m; step 10% for 5m } }\n}\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstage up {\n  deploy web to here { canary { step 10% for 5m; step 50% for 5m } }\n}\n"

    STUCK_ROLLING = "CD0603" Error "rolling can't move";
    "`max_surge` and `max_unavailable` are both 0: no instance may be added and none may be missing, so none can be replaced."
    bad "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up {\n  deploy web to here { rolling { max_surge = 0, max_unavailable = 0 } }\n}\n"
    good "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up {\n  deploy web to here { rolling { max_surge = 1, max_unavailable = 0 } }\n}\n"

    NO_MATCHING = "CD0604" Error "the router can't match requests so";
    "The canary routes by header or cookie, or keeps users on a release, and the environment's router can't do that."
    bad "environment test {\n  target kubernetes { context = \"test\" }\n  traffic gateway { http_route = \"web\" }\n}\nservice web { manifest = \"k8s/*.yaml\" }\nstage up {\n  deploy web to test { canary { route cookie(\"canary\", \"1\"); step 10% for 5m } }\n}\n"
    good "environment test {\n  target kubernetes { context = \"test\" }\n  traffic gateway { http_route = \"web\" }\n}\nservice web { manifest = \"k8s/*.yaml\" }\nstage up {\n  deploy web to test { canary { route header(\"canary\", \"1\"); step 10% for 5m } }\n}\n"

    NO_STEPS = "CD0605" Error "canary without a step";
    "A canary without a step sends nobody to the candidate before everybody."
    bad "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstage up { deploy web to here { canary { sticky = cookie } } }\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstage up { deploy web to here { canary { sticky = cookie; step 10% for 5m } } }\n"

    WRONG_WORKLOAD = "CD0606" Error "the target can't run what the service is made from";
    "Processes run on `local` and `hosts`, images on `hosts` too and on `docker`, images and compose services on `swarm`, images and manifests on `kubernetes`."
    bad "environment here { target local }\nservice web { image = \"acme/web:1.0\" }\nstage up { deploy web to here }\n"
    good "environment here { target docker }\nservice web { image = \"acme/web:1.0\" }\nstage up { deploy web to here }\n"

    KEPT_TOO_SHORT = "CD0607" Warning "the old release goes before the watch ends";
    "`keep_old` is shorter than the watch's `after`: when the watch finds something, the old release has been stopped already, and the way back \
     takes a start instead of a switch."
    bad "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstage up {\n  deploy web to here {\n    blue_green { keep_old = 1m }\n    watch every 10s { rollback when ready < 80%; after = 10m; no_data = rollback }\n  }\n}\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstage up {\n  deploy web to here {\n    blue_green { keep_old = 10m }\n    watch every 10s { rollback when ready < 80%; after = 10m; no_data = rollback }\n  }\n}\n"

    WRONG_STRATEGY = "CD0608" Error "settings of another strategy";
    "A deploy names a strategy and gives settings of a different kind. Inline settings refine the named strategy, so both must be of one kind."
    bad "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstrategy slow canary { step 5% for 10m }\nstage up { deploy web to here { strategy = slow; rolling { batch = 2 } } }\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstrategy slow canary { step 5% for 10m }\nstage up { deploy web to here { strategy = slow; canary { sticky = cookie } } }\n"

    HOLDS_NOTHING = "CD0609" Warning "step has no duration";
    "A step of a canary without `for` or `until` goes on at once, so nobody has seen the candidate at this share."
    bad "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstage up { deploy web to here { canary { step 10% } } }\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nstage up { deploy web to here { canary { step 10% for 5m } } }\n"

    NO_ROUTER = "CD0610" Warning "route without a router";
    "The service says where users reach it, and the environment has no `traffic`, so nothing sends them there."
    bad "environment here { target local }\nservice web { command = [\"./web\"], route { listen = 8080 } }\nstage up { deploy web to here }\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"], route { listen = 8080 } }\nstage up { deploy web to here }\n"

    NOT_READ = "CD0611" Warning "the target does not read a setting";
    "The service says something that only other targets than the one it is deployed to know, so it has no effect there."
    bad "environment here { target local }\nservice web {\n  command = [\"./web\"]\n  mounts = [\"data:/data\"]\n}\nstage up { deploy web to here }\n"
    good "environment here { target docker }\nservice web {\n  image = \"acme/web:1.0\"\n  mounts = [\"data:/data\"]\n}\nstage up { deploy web to here }\n"

    NO_CONTAINERS = "CD0612" Error "nothing runs containers there";
    "A command with an `image` runs in a container where the environment's target runs its own. `local` runs processes, the machines of \
     `hosts` have an engine each, and without an environment there is no target at all: none of them can run it."
    bad "environment here { target local }\nstage test { run \"npm test\" { image = \"node:22\", environment = here } }\n"
    good "environment here { target docker }\nstage test { run \"npm test\" { image = \"node:22\", environment = here } }\n"
}
