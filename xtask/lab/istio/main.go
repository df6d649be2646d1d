package main

// The module pins istiod; what is built is its own command.
import _ "istio.io/istio/pilot/cmd/pilot-discovery/app"

func main() {}
