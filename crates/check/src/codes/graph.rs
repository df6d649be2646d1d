//! CD05xx: the graph of stages and gates.

codes! {
    UNKNOWN_NEED = "CD0501" Error "needs a stage that does not exist";
    "`needs` names a stage or a gate that the pipeline does not have, so the stage would wait for ever."
    bad "stage build { run \"make\" }\nstage test { needs = [bulid]; run \"make test\" }\n"
    good "stage build { run \"make\" }\nstage test { needs = [build]; run \"make test\" }\n"

    SELF_NEED = "CD0502" Error "stage needs itself";
    "A stage that needs itself can never start."
    bad "stage build { needs = [build]; run \"make\" }\n"
    good "stage build { run \"make\" }\n"

    DUPLICATE_NEED = "CD0503" Error "the same need twice";
    "A stage is named twice in one `needs`. Perhaps another one was meant."
    bad "stage build { run \"make\" }\nstage test { needs = [build, build]; run \"make test\" }\n"
    good "stage build { run \"make\" }\nstage test { needs = [build]; run \"make test\" }\n"

    CYCLE = "CD0504" Error "stages need each other in a circle";
    "Each of these stages waits for the next one and the last for the first, so none can ever start. The message shows the whole circle; \
     one of its needs has to go."
    bad "stage a { needs = [b]; run \"make a\" }\nstage b { needs = [a]; run \"make b\" }\n"
    good "stage a { run \"make a\" }\nstage b { needs = [a]; run \"make b\" }\n"

    OUTPUT_NOT_NEEDED = "CD0505" Error "output of a stage that is not needed";
    "A stage reads the output of another one without needing it, directly or through others. The two could run in any order, and the \
     output might not be there."
    bad "stage build {\n  run \"make\"\n  output digest: string\n}\nstage sign { run \"sign ${stage.build.digest}\" }\n"
    good "stage build {\n  run \"make\"\n  output digest: string\n}\nstage sign { needs = [build]; run \"sign ${stage.build.digest}\" }\n"

    UNORDERED_DEPLOYS = "CD0506" Error "two stages change one service without an order";
    "Both stages deploy the same service to the same environment and neither needs the other, so which version stays would be a matter of \
     chance."
    bad "environment here { target local }\nservice web { command = [\"./web\"] }\nstage one { deploy web to here }\nstage two { deploy web to here }\n"
    good "environment here { target local }\nservice web { command = [\"./web\"] }\nstage one { deploy web to here }\nstage two { needs = [one]; deploy web to here }\n"

    MATRIX_DEPLOY = "CD0507" Error "a matrix deploys one service several times at once";
    "Each stage of the matrix deploys the same service to the same environment, all at the same time."
    bad "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up for x in [\"a\", \"b\"] {\n  run \"echo ${x}\"\n  deploy web to here\n}\n"
    good "environment here { target local }\nservice web { command = [\"./web\"] }\nstage prepare for x in [\"a\", \"b\"] { run \"echo ${x}\" }\nstage up { needs = [prepare]; deploy web to here }\n"

    SAME_ROUTE = "CD0508" Error "two services claim one route";
    "Two services of one environment are reached under the same address, host and path, so their deploys would take the users from each \
     other."
    bad "environment here {\n  target local\n  traffic proxy { listen = 8080 }\n}\nservice web { command = [\"./web\"] }\nservice api { command = [\"./api\"] }\nstage up {\n  deploy web to here\n  deploy api to here\n}\n"
    good "environment here {\n  target local\n  traffic proxy { listen = 8080 }\n}\nservice web { command = [\"./web\"], route { path = \"/\" } }\nservice api { command = [\"./api\"], route { path = \"/api\" } }\nstage up {\n  deploy web to here\n  deploy api to here\n}\n"

    SHORT_TIMEOUT = "CD0509" Warning "timeout is shorter than what it covers";
    "The stage (or deploy) may take less time than its own steps are told to wait, so it would time out even if everything went well."
    bad "stage slow {\n  timeout = 1m\n  wait 5m\n  run \"make\"\n}\n"
    good "stage slow {\n  timeout = 30m\n  wait 5m\n  run \"make\"\n}\n"

    OUTPUT_WITHOUT_RUN = "CD0510" Error "nobody writes the output";
    "An output is written by a `run` step of its stage. This stage has none, so it would always fail for a missing output."
    bad "stage build {\n  wait 1s\n  output digest: string\n}\n"
    good "stage build {\n  run \"echo digest=1 >> $CDPIPE_OUTPUT\"\n  output digest: string\n}\nstage sign { needs = [build]; run \"sign ${stage.build.digest}\" }\n"

    HEADLESS_GATE = "CD0511" Error "gate asks for nothing";
    "A gate without approval, metric, check or window opens at once, and holds nothing back."
    bad "gate release { description = \"later\" }\nstage go { needs = [release]; run \"make\" }\n"
    good "gate release { approval { by = [\"ops\"] } }\nstage go { needs = [release]; run \"make\" }\n"
}
