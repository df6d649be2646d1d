//! In which order kinds are applied: what others stand on first. Taken back the other way round.

use super::Manifest;

/// When an object's turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Turn {
    /// Namespaces.
    Places,
    /// CustomResourceDefinitions: waited for until they are established.
    Kinds,
    /// Classes, accounts, rights, limits.
    Rules,
    /// ConfigMaps, Secrets, volumes.
    Settings,
    /// Services and what else pods are found by.
    Names,
    /// Objects of kinds that cdpipe knows nothing of.
    Others,
    /// What makes pods: waited for until it is ready.
    Workloads,
    /// What stands on workloads: autoscalers, ingresses, aggregated APIs.
    Edges,
    /// Webhooks and admission policies, when what answers them is ready.
    Gates,
}

/// The turn of a kind of this API group.
pub(crate) fn turn(group: &str, kind: &str) -> Turn {
    match (group, kind) {
        ("", "Namespace") => Turn::Places,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => Turn::Kinds,
        ("rbac.authorization.k8s.io" | "scheduling.k8s.io" | "storage.k8s.io" | "node.k8s.io", _)
        | ("", "ServiceAccount" | "ResourceQuota" | "LimitRange")
        | ("networking.k8s.io", "NetworkPolicy" | "IngressClass")
        | ("policy", _) => Turn::Rules,
        ("", "ConfigMap" | "Secret" | "PersistentVolume" | "PersistentVolumeClaim") => Turn::Settings,
        ("", "Service" | "Endpoints") | ("discovery.k8s.io", "EndpointSlice") => Turn::Names,
        ("", "Pod" | "ReplicationController") | ("apps" | "batch", _) => Turn::Workloads,
        ("autoscaling" | "apiregistration.k8s.io", _) | ("networking.k8s.io", "Ingress") => Turn::Edges,
        ("admissionregistration.k8s.io", _) => Turn::Gates,
        _ => Turn::Others,
    }
}

/// Before bindings come the roles that they bind, before workloads of the same turn nothing in particular.
fn within(kind: &str) -> u8 {
    u8::from(kind.ends_with("Binding"))
}

/// Puts objects in the order in which they are applied; those of one turn stay as they were written.
pub(crate) fn sort(objects: &mut [Manifest]) {
    objects.sort_by_key(|one| (turn(one.group(), &one.kind), within(&one.kind)));
}

/// Whether what is in it, or all objects of its kind, would go with it: cdpipe never deletes such an object.
pub(crate) fn holds_others(group: &str, kind: &str) -> bool {
    matches!(
        (group, kind),
        ("", "Namespace" | "PersistentVolume" | "PersistentVolumeClaim")
            | ("apiextensions.k8s.io", "CustomResourceDefinition")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::manifests;

    #[test]
    fn what_others_stand_on_comes_first_whatever_the_order_of_the_file() {
        let kinds = [
            ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
            ("autoscaling/v2", "HorizontalPodAutoscaler"),
            ("apps/v1", "Deployment"),
            ("batch/v1", "Job"),
            ("example.com/v1", "Widget"),
            ("v1", "Service"),
            ("v1", "Secret"),
            ("rbac.authorization.k8s.io/v1", "RoleBinding"),
            ("rbac.authorization.k8s.io/v1", "Role"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
            ("v1", "Namespace"),
        ];
        let text: String = kinds
            .iter()
            .map(|(version, kind)| {
                format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n")
            })
            .collect();
        let mut objects = manifests("a.yaml", &text).unwrap();
        sort(&mut objects);
        let sorted: Vec<&str> = objects.iter().map(|one| one.kind.as_str()).collect();
        assert_eq!(
            sorted,
            [
                "Namespace",
                "CustomResourceDefinition",
                "Role",
                "RoleBinding",
                "Secret",
                "Service",
                "Widget",
                "Deployment",
                "Job",
                "HorizontalPodAutoscaler",
                "ValidatingWebhookConfiguration",
            ]
        );
    }

    #[test]
    fn nothing_that_holds_other_things_is_ever_deleted() {
        for kind in ["Namespace", "PersistentVolume", "PersistentVolumeClaim"] {
            assert!(holds_others("", kind));
        }
        assert!(holds_others("apiextensions.k8s.io", "CustomResourceDefinition"));
        assert!(!holds_others("apps", "StatefulSet") && !holds_others("example.com", "Namespace"));
    }
}
