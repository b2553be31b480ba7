"""The pod's network: what CNI or an engine puts into a network namespace, brought into the guest.

    interface of the namespace  ⇄  tc ingress redirect, both ways  ⇄  tap  ⇄  QEMU  ⇄  virtio-net in the guest

The interface keeps its name, addresses and routes on the host (CNI looks for them later), but hears nothing any more:
what arrives goes to the guest, which has the same MAC address, addresses and routes.

| module | knows |
|---|---|
| `namespace` | a network namespace held open, and work that is done inside of it |
| `model` | interfaces, routes, neighbours; what of them goes to the guest (pure) |
| `rtnetlink` | what rtnetlink is asked: what there is, and tc's redirect |
| `tap` | the way between an interface and QEMU, and its undoing |
| `localhost`, `lookup` | the way from the namespace's localhost to the guest's, for port-forwarding |
| `network` | the owner: what the sandbox calls |
"""
