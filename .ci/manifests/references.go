package main

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// references returns what is named and is not there.
func (o *objects) references() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	pods := func(who string, selector labels.Selector) (found []corev1.PodSpec) {
		for _, d := range o.deployments {
			if selector.Matches(labels.Set(d.Spec.Template.Labels)) {
				found = append(found, d.Spec.Template.Spec)
			}
		}
		if len(found) != 1 || selector.Empty() {
			fail("%s selects the pods of %d deployments, want one", who, len(found))
		}
		return found
	}
	selector := func(who string, s *metav1.LabelSelector) labels.Selector {
		parsed, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			fail("%s: %w", who, err)
			return labels.Nothing()
		}
		return parsed
	}
	for _, d := range o.deployments {
		who := "deployment " + d.Name
		for _, spec := range pods(who, selector(who, d.Spec.Selector)) {
			for _, s := range spec.TopologySpreadConstraints {
				pods(who+", spread", selector(who, s.LabelSelector))
			}
		}
		o.podReferences(who, &d.Spec.Template.Spec, fail)
	}
	for _, b := range o.budgets {
		who := "budget " + b.Name
		pods(who, selector(who, b.Spec.Selector))
	}
	for _, s := range o.services {
		for _, spec := range pods("service "+s.Name, labels.SelectorFromSet(s.Spec.Selector)) {
			for _, p := range s.Spec.Ports {
				if !hasPort(&spec, p.TargetPort.String()) {
					fail("service %s leads to the port %s, which no container has", s.Name, p.TargetPort.String())
				}
			}
		}
	}
	for _, h := range o.scalers {
		target := h.Spec.ScaleTargetRef
		there := false
		for _, d := range o.deployments {
			if d.Name != target.Name || target.Kind != "Deployment" || d.Namespace != h.Namespace {
				continue
			}
			there = true
			if d.Spec.Replicas != nil {
				fail("deployment %s has replicas, and the autoscaler %s has them too", d.Name, h.Name)
			}
		}
		if !there {
			fail("autoscaler %s scales %s %s, which is not there", h.Name, target.Kind, target.Name)
		}
		if h.Spec.MinReplicas == nil || *h.Spec.MinReplicas > h.Spec.MaxReplicas {
			fail("autoscaler %s: want minReplicas, at most maxReplicas", h.Name)
		}
	}
	return errs
}

func (o *objects) podReferences(who string, spec *corev1.PodSpec, fail func(string, ...any)) {
	if spec.SecurityContext == nil || spec.SecurityContext.RunAsNonRoot == nil || !*spec.SecurityContext.RunAsNonRoot ||
		spec.SecurityContext.SeccompProfile == nil {
		fail("%s: want runAsNonRoot and a seccompProfile, as the pod security standard \"restricted\" does", who)
	}
	used := map[string]bool{}
	for _, c := range spec.Containers {
		s := c.SecurityContext
		if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.Capabilities == nil || !slices.Contains(s.Capabilities.Drop, "ALL") {
			fail("%s, container %s: want no privilege escalation and all capabilities dropped, as \"restricted\" does", who, c.Name)
		}
		if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().Cmp(*c.Resources.Requests.Memory()) < 0 {
			fail("%s, container %s: want requests of CPU and memory, and a limit of memory that is not below", who, c.Name)
		}
		for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if p != nil && p.HTTPGet != nil && !hasPort(spec, p.HTTPGet.Port.String()) {
				fail("%s, container %s: a probe asks the port %s, which is not there", who, c.Name, p.HTTPGet.Port.String())
			}
		}
		for _, m := range c.VolumeMounts {
			i := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
			if i < 0 {
				fail("%s, container %s mounts %s, which is no volume", who, c.Name, m.Name)
				continue
			}
			used[m.Name] = true
			if source := spec.Volumes[i].ConfigMap; source != nil && m.SubPath != "" && !o.hasKey(source.Name, m.SubPath) {
				fail("%s, container %s mounts %s of the ConfigMap %s, which does not have it", who, c.Name, m.SubPath, source.Name)
			}
		}
	}
	for _, v := range spec.Volumes {
		if !used[v.Name] {
			fail("%s: the volume %s is mounted nowhere", who, v.Name)
		}
		if v.ConfigMap != nil && !slices.ContainsFunc(o.configMaps, func(c *corev1.ConfigMap) bool { return c.Name == v.ConfigMap.Name }) {
			fail("%s: there is no ConfigMap %s", who, v.ConfigMap.Name)
		}
	}
}

func (o *objects) hasKey(name, key string) bool {
	for _, c := range o.configMaps {
		if _, ok := c.Data[key]; ok && c.Name == name {
			return true
		}
	}
	return false
}

// hasPort says whether a pod has a port of this name or number.
func hasPort(spec *corev1.PodSpec, port string) bool {
	for _, c := range spec.Containers {
		for _, p := range c.Ports {
			if p.Name == port || fmt.Sprint(p.ContainerPort) == port {
				return true
			}
		}
	}
	return false
}
