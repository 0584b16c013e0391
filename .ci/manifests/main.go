// Manifests builds a kustomization as `kubectl apply -k` does, and holds what
// comes of it to what Kubernetes publishes: each object is decoded strictly into its Go
// type, so that a field which nobody knows is found, and validated against the OpenAPI
// description of its group. It needs no cluster. Of what no schema says it
// looks at references: selectors, ports, volumes, settings and targets.
//
//	go run -C .ci/manifests . [-settings DIR] ../../deploy/kubernetes/base
//
// With -settings, the settings in ConfigMaps are written into DIR, a file for
// each, for the program itself to check. It prints what it found, and ends with
// status 1 where that is wrong.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// published is the release of Kubernetes whose OpenAPI description counts; its
// types are those of k8s.io/api in go.mod, which has the same minor version.
const published = "k8s.io/kubernetes@v1.34.2"

// A kind is what may be in a manifest.
type kind struct {
	object func() any
	file   string // in api/openapi-spec/v3
	schema string
}

var kinds = map[string]kind{
	"v1 ConfigMap":                           {func() any { return new(corev1.ConfigMap) }, "api__v1_openapi.json", "io.k8s.api.core.v1.ConfigMap"},
	"v1 Service":                             {func() any { return new(corev1.Service) }, "api__v1_openapi.json", "io.k8s.api.core.v1.Service"},
	"apps/v1 Deployment":                     {func() any { return new(appsv1.Deployment) }, "apis__apps__v1_openapi.json", "io.k8s.api.apps.v1.Deployment"},
	"policy/v1 PodDisruptionBudget":          {func() any { return new(policyv1.PodDisruptionBudget) }, "apis__policy__v1_openapi.json", "io.k8s.api.policy.v1.PodDisruptionBudget"},
	"autoscaling/v2 HorizontalPodAutoscaler": {func() any { return new(autoscalingv2.HorizontalPodAutoscaler) }, "apis__autoscaling__v2_openapi.json", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler"},
}

func main() {
	settings := flag.String("settings", "", "where to write the settings that are in ConfigMaps, a `DIR`")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "manifests: name the folders of kustomizations")
		os.Exit(2)
	}
	schemas, err := openSchemas()
	for _, folder := range flag.Args() {
		if err == nil {
			err = check(schemas, folder, *settings)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

func check(schemas *schemas, folder, settings string) error {
	build := krusty.MakeKustomizer(krusty.MakeDefaultOptions())
	built, err := build.Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		return fmt.Errorf("build %s: %w", folder, err)
	}
	var all objects
	var errs []error
	for _, r := range built.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			return fmt.Errorf("build %s: %w", folder, err)
		}
		if err := all.add(schemas, text); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.CurId(), err))
		}
	}
	errs = append(errs, all.references()...)
	for i, c := range all.configMaps {
		for name, text := range c.Data {
			if settings == "" {
				continue
			}
			file := filepath.Join(settings, fmt.Sprintf("%s-%d-%s", filepath.Base(folder), i, name))
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", folder, err)
	}
	fmt.Printf("%s: %d objects are as %s and one another want them\n", folder, len(built.Resources()), published)
	return nil
}

// schemas are the published descriptions, in a folder of the module cache.
type schemas struct {
	folder   string
	compiler *jsonschema.Compiler
}

func openSchemas() (*schemas, error) {
	download := exec.Command("go", "mod", "download", "-json", published)
	download.Dir = os.TempDir() // it is no dependency: only its folder is wanted
	out, err := download.Output()
	var module struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &module); err != nil || jsonErr != nil || module.Error != "" {
		return nil, fmt.Errorf("download %s: %s", published, errors.Join(err, jsonErr, errors.New(module.Error)))
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft4) // of which OpenAPI 3.0 is a dialect
	return &schemas{filepath.Join(module.Dir, "api", "openapi-spec", "v3"), c}, nil
}

// validate holds an object to its description.
func (s *schemas) validate(k kind, text []byte) error {
	schema, err := s.compiler.Compile("file://" + filepath.Join(s.folder, k.file) + "#/components/schemas/" + k.schema)
	if err != nil {
		return fmt.Errorf("read published schema: %w", err)
	}
	data, err := yaml.YAMLToJSON(text)
	if err != nil {
		return err
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(data)))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

// objects are those of one kustomization.
type objects struct {
	configMaps  []*corev1.ConfigMap
	services    []*corev1.Service
	deployments []*appsv1.Deployment
	budgets     []*policyv1.PodDisruptionBudget
	scalers     []*autoscalingv2.HorizontalPodAutoscaler
}

func (o *objects) add(schemas *schemas, text []byte) error {
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal(text, &head); err != nil {
		return err
	}
	k, ok := kinds[head.APIVersion+" "+head.Kind]
	if !ok {
		return fmt.Errorf("%s %s is no kind that is known here: add it", head.APIVersion, head.Kind)
	}
	object := k.object()
	if err := yaml.UnmarshalStrict(text, object); err != nil {
		return err
	}
	if err := schemas.validate(k, text); err != nil {
		return err
	}
	switch object := object.(type) {
	case *corev1.ConfigMap:
		o.configMaps = append(o.configMaps, object)
	case *corev1.Service:
		o.services = append(o.services, object)
	case *appsv1.Deployment:
		o.deployments = append(o.deployments, object)
	case *policyv1.PodDisruptionBudget:
		o.budgets = append(o.budgets, object)
	case *autoscalingv2.HorizontalPodAutoscaler:
		o.scalers = append(o.scalers, object)
	}
	return nil
}
