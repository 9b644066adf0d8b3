// The type of a board, from the types of Grafana's foundation SDK. tests/test_grafana_board.py gives
// deploy/grafana/nodestate.json this type and runs `tsc`.

import type { Dashboard, FieldConfigSource, Panel } from "@grafana/grafana-foundation-sdk/dashboard";
import type { Dataquery } from "@grafana/grafana-foundation-sdk/prometheus";
import type { FieldConfig, Options } from "@grafana/grafana-foundation-sdk/timeseries";

// The form of a type in JSON: a member of an enum is its value, and marker methods of the SDK are left out.
type Json<T> = 0 extends 1 & T
  ? T
  : T extends string
    ? `${T}`
    : T extends number
      ? number
      : T extends (infer U)[]
        ? Json<U>[]
        : T extends object
          ? { [K in keyof T as T[K] extends () => void ? never : K]: Json<T[K]> }
          : T;

// The SDK leaves queries, options and custom settings of a panel open. All panels of the board are time series of
// Prometheus, so they have the types of these.
interface TimeSeriesPanel extends Omit<Panel, "targets" | "options" | "fieldConfig"> {
  type: "timeseries";
  targets: Dataquery[];
  options: Options;
  fieldConfig: Omit<FieldConfigSource, "defaults"> & {
    defaults: Omit<FieldConfigSource["defaults"], "custom"> & { custom?: FieldConfig };
  };
}

export type Board = Json<Omit<Dashboard, "panels"> & { panels: TimeSeriesPanel[] }>;
