package catalog

import (
	"strings"

	"gorm.io/gorm"
)

// listIndexes are what lists are read by: what they are filtered by first, then what they are sorted by, then the id,
// so that every page is one range of one of them. Tables grow by restore points, runs and tasks without end.
var listIndexes = []string{
	"restore_points (vm_id, id)",
	"restore_points (vm_id, verify_result, verified)",
	"restore_points (connection_id, id)",
	"restore_points (repository_id, id)",
	"restore_points (time, id)",
	"restore_points (repository_id, time, id)",
	"restore_points (vm_name, id)",
	"restore_points (repository_id, vm_name, id)",
	"restore_points (bytes_stored, id)",
	"restore_points (repository_id, bytes_stored, id)",
	"runs (kind, id)",
	"runs (state, id)",
	"tasks (run_id, id)",
	"tasks (vm_id, id)",
	"tasks (state, id)",
	"tasks (repository_id, kind, id)",
	"tokens (user_id, id)",
	// VMs are filtered inside the index: their rows are large.
	"vms (name, id, gone_at, power, connection_id)",
	"vms (connection_id, name, id, gone_at, power)",
	"vms (power, id, gone_at, connection_id)",
}

// replacedIndexes are those of earlier versions of which the first column is now that of another.
var replacedIndexes = []string{
	"idx_restore_points_vm_id", "idx_restore_points_repository_id", "idx_runs_kind", "idx_runs_state", "idx_tasks_run_id",
	"idx_tasks_vm_id", "idx_tasks_state", "idx_tasks_repository_id", "idx_tokens_user_id", "idx_vms_name",
}

// createIndexes makes the list indexes and drops those that they replace.
func createIndexes(tx *gorm.DB) error {
	for _, name := range replacedIndexes {
		if err := tx.Exec("DROP INDEX IF EXISTS " + name).Error; err != nil {
			return err
		}
	}
	for _, on := range listIndexes {
		if err := tx.Exec("CREATE INDEX IF NOT EXISTS " + indexName(on) + " ON " + on).Error; err != nil {
			return err
		}
	}
	return nil
}

// indexName makes "list_runs_kind_id" of "runs (kind, id)".
func indexName(on string) string {
	return "list_" + strings.NewReplacer(" (", "_", ", ", "_", ")", "").Replace(on)
}
